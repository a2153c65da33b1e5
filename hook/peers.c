/* Which socket was captured, and where it wanted to go.
 *
 * Keyed by the socket's cookie, which the kernel never gives twice: dup, close, fork and the reuse
 * of numbers need no bookkeeping. The table forgets the oldest instead; it is large enough for the
 * connections of a busy process, and memory that was never used costs nothing.
 *
 * No lock: each entry has its own sequence, odd while it is written. A writer that meets an odd
 * entry (another thread's, or its own under a signal handler, or one cut off by fork) takes
 * another one. */
#include "mosnhook.h"
#include "sys.h"

enum {
    WAYS = 4,
    SETS = 32768,
    READ_TRIES = 16,
};

_Static_assert(sizeof(struct peer) % sizeof(uint32_t) == 0, "copied by words");

enum { WORDS = sizeof(struct peer) / sizeof(uint32_t) };

struct entry {
    uint32_t sequence;
    uint32_t age; /* of the clock below when written */
    uint64_t cookie;
    uint32_t words[WORDS]; /* a struct peer */
};

static struct entry table[SETS][WAYS];
static uint32_t clock_now;

static struct entry *set_of(uint64_t cookie)
{
    return table[cookie % SETS];
}

static struct entry *entry_of(uint64_t cookie)
{
    for (int i = 0; i < WAYS; i++)
        if (__atomic_load_n(&set_of(cookie)[i].cookie, __ATOMIC_RELAXED) == cookie)
            return &set_of(cookie)[i];
    return NULL;
}

/* Writes the entry, unless somebody else does just now. */
static bool write_entry(struct entry *entry, uint64_t cookie, const struct peer *peer)
{
    uint32_t sequence = __atomic_load_n(&entry->sequence, __ATOMIC_RELAXED);
    uint32_t words[WORDS];

    if ((sequence & 1) || !__atomic_compare_exchange_n(&entry->sequence, &sequence, sequence + 1,
                                                       false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return false;
    __atomic_thread_fence(__ATOMIC_RELEASE);
    __builtin_memcpy(words, peer, sizeof words);
    __atomic_store_n(&entry->cookie, cookie, __ATOMIC_RELAXED);
    __atomic_store_n(&entry->age, __atomic_add_fetch(&clock_now, 1, __ATOMIC_RELAXED),
                     __ATOMIC_RELAXED);
    for (int i = 0; i < WORDS; i++)
        __atomic_store_n(&entry->words[i], words[i], __ATOMIC_RELAXED);
    __atomic_store_n(&entry->sequence, sequence + 2, __ATOMIC_RELEASE);
    return true;
}

void peers_remember(uint64_t cookie, const struct peer *peer)
{
    uint32_t now = __atomic_load_n(&clock_now, __ATOMIC_RELAXED);
    struct entry *entry;

    if (!cookie)
        return;
    entry = entry_of(cookie);
    if (entry && write_entry(entry, cookie, peer))
        return;
    for (int tries = 0; tries < WAYS; tries++) {
        struct entry *oldest = NULL;

        for (int i = 0; i < WAYS; i++) {
            struct entry *other = &set_of(cookie)[i];

            if (!(__atomic_load_n(&other->sequence, __ATOMIC_RELAXED) & 1) &&
                (!oldest || now - __atomic_load_n(&other->age, __ATOMIC_RELAXED) >
                                now - __atomic_load_n(&oldest->age, __ATOMIC_RELAXED)))
                oldest = other;
        }
        if (!oldest || write_entry(oldest, cookie, peer))
            return;
    }
}

bool peers_find(uint64_t cookie, struct peer *peer)
{
    struct entry *entry = cookie ? entry_of(cookie) : NULL;
    uint32_t words[WORDS];

    for (int tries = 0; entry && tries < READ_TRIES; tries++) {
        uint32_t sequence = __atomic_load_n(&entry->sequence, __ATOMIC_ACQUIRE);

        if (__atomic_load_n(&entry->cookie, __ATOMIC_RELAXED) != cookie)
            return false;
        for (int i = 0; i < WORDS; i++)
            words[i] = __atomic_load_n(&entry->words[i], __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (!(sequence & 1) && __atomic_load_n(&entry->sequence, __ATOMIC_RELAXED) == sequence) {
            __builtin_memcpy(peer, words, sizeof *peer);
            return true;
        }
    }
    return false;
}

void peers_forget(uint64_t cookie)
{
    static const struct peer nobody;
    struct entry *entry = cookie ? entry_of(cookie) : NULL;

    if (entry)
        write_entry(entry, 0, &nobody);
}

bool peers_any(void)
{
    return __atomic_load_n(&clock_now, __ATOMIC_RELAXED) != 0;
}

uint64_t socket_cookie(int fd)
{
    uint64_t cookie = 0;
    socklen_t length = sizeof cookie;

    return sys_getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length) == 0 ? cookie : 0;
}
