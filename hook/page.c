/* The policy page: mapped read-only, so that a change is seen at once and looking costs nothing.
 *
 * The mapping has its place in our own .bss: zeros there, no page yet. A newer file is mapped over
 * the older one (MAP_FIXED replaces it in one step under the eyes of other threads), and the
 * sequence's random start tells a reader in the middle that it is another page. */
#include <errno.h>
#include <sys/mman.h>

#include "mosnhook.h"
#include "rules.h"
#include "sys.h"

enum {
    SPINS = 100,  /* a writer that is running needs less */
    PAUSES = 100, /* of 1 ms: a writer that lost its processor comes back within them */
    PATH_ROOM = 512,
};

/* 64 KiB is the largest page size of the supported machines. */
static _Alignas(65536) struct {
    struct mosnhook_page page;
    char rest[MOSNHOOK_PAGE_SIZE - sizeof(struct mosnhook_page)];
} area;

_Static_assert(sizeof area == MOSNHOOK_PAGE_SIZE, "the mapping fills its place");

/* Behind a pointer that the compiler cannot see through: the kernel and another process change it.
 */
static const struct mosnhook_page *page(void)
{
    const struct mosnhook_page *at = &area.page;

    __asm__("" : "+r"(at));
    return at;
}

/* ---- Finding the file ----
 *
 * The page says where this program's traffic goes, so it is somebody's who may decide that: nobody
 * but its owner can write to it, and nobody but its owner could have put it there. */

static const char page_name[] = "hook.policy";

static bool is_writable_for_others(const struct stat *status)
{
    return status->st_mode & (S_IWGRP | S_IWOTH);
}

/* Maps the file if it is a page, and takes its descriptor. `owner`: whose it must be if it is not
 * root's; NULL: anybody's. 0 or -errno. */
static int map_page(int fd, const uid_t *owner)
{
    struct stat status;
    bool mapped = false;

    if (fd < 0)
        return fd;
    /* A shorter file would be a SIGBUS in the middle of the program. */
    if (sys_fstat(fd, &status) == 0 && S_ISREG(status.st_mode) &&
        status.st_size == MOSNHOOK_PAGE_SIZE && !is_writable_for_others(&status) &&
        (!owner || status.st_uid == 0 || status.st_uid == *owner))
        mapped = sys_mmap(&area, sizeof area, PROT_READ, MAP_SHARED | MAP_FIXED, fd) == (long)&area;
    sys_close(fd);
    return mapped ? 0 : -EINVAL;
}

/* The page that was named: whose it is, is the affair of whoever named it. */
static int map_named(const char *path)
{
    return map_page(sys_open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0), NULL);
}

/* The page in one of the usual directories, in which only the owner (root, or `owner`; NULL:
 * anybody) can replace files. Symbolic links, which anybody could have made, are not followed. */
static int map_in(const char *directory, const uid_t *owner)
{
    int place = sys_open(directory, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
    struct stat status;
    int result = -EPERM;

    if (place < 0)
        return place;
    if (sys_fstat(place, &status) == 0 && !is_writable_for_others(&status) &&
        (!owner || status.st_uid == 0 || status.st_uid == *owner))
        result = map_page(sys_openat(place, page_name,
                                     O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0),
                          &status.st_uid);
    sys_close(place);
    return result;
}

static bool join(char path[PATH_ROOM], const char *a, const char *b)
{
    const char *parts[] = {a, b};
    size_t size = 0;

    for (int i = 0; i < 2; i++)
        for (const char *at = parts[i]; *at; at++) {
            if (size == PATH_ROOM - 1)
                return false;
            path[size++] = *at;
        }
    path[size] = 0;
    return true;
}

/* In /tmp/pysidecar-<uid>. */
static int map_in_tmp(const uid_t *own)
{
    char path[PATH_ROOM], digits[12], *digit = digits + sizeof digits - 1;
    uid_t uid = *own;

    *digit = 0;
    do
        *--digit = (char)('0' + uid % 10);
    while (uid /= 10);
    return join(path, "/tmp/pysidecar-", digit) ? map_in(path, own) : -ENAMETOOLONG;
}

/* 0 or -errno: EMFILE as soon as there is no descriptor to look further. */
static int find_page(void)
{
    static const uid_t root = 0;
    uid_t own = sys_geteuid();
    char path[PATH_ROOM];
    int result = -ENOENT;

    if (environment.policy)
        return map_named(environment.policy);
    if (environment.runtime_directory && environment.runtime_directory[0] == '/' &&
        join(path, environment.runtime_directory, "/pysidecar"))
        result = map_in(path, &own);
    /* Only root can make it, and give it to the user that the sidecar runs as. */
    if (result < 0 && result != -EMFILE)
        result = map_in("/run/pysidecar", environment.secure ? &root : NULL);
    if (result < 0 && result != -EMFILE && !environment.secure)
        result = map_in_tmp(&own);
    return result;
}

static void find_page_here(void *unused)
{
    (void)unused;
    find_page();
}

void page_open(void)
{
    if (find_page() == -EMFILE)
        apart(-1, find_page_here, NULL);
}

/* ---- Reading ---- */

static bool is_own(const struct mosnhook_address *own, uint32_t count,
                   const struct mosnhook_address *destination)
{
    for (uint32_t i = 0; i < count; i++)
        if (own[i].port == destination->port &&
            (address_equal(&own[i], destination) ||
             (address_is_unspecified(&own[i]) && address_is_loopback(destination))))
            return true;
    return false;
}

static uint32_t at_most(uint32_t count, uint32_t limit)
{
    return count < limit ? count : limit;
}

/* Copies what matters to `view`. Garbage if the page is written meanwhile, but never out of bounds.
 */
static void copy(const struct mosnhook_page *from, const struct mosnhook_address *destination,
                 struct page_view *view)
{
    struct mosnhook_rules rules = from->rules;
    uint64_t room = MOSNHOOK_PAGE_SIZE - offsetof(struct mosnhook_page, rules);

    view->state = from->state;
    view->transport = from->transport;
    view->when_away = from->when_away;
    view->wait_ms = from->wait_ms;
    view->server_uid = from->server_uid;
    __builtin_memcpy(view->ticket, from->ticket, sizeof view->ticket);
    view->listener_count = at_most(from->listener_count, MOSNHOOK_MAX_LISTENERS);
    view->park_count = at_most(from->park_count, MOSNHOOK_MAX_PARKS);
    __builtin_memcpy(view->listeners, from->listeners,
                     view->listener_count * sizeof *view->listeners);
    __builtin_memcpy(view->parks, from->parks, view->park_count * sizeof *view->parks);
    __builtin_memcpy(view->control_path, from->control_path, sizeof view->control_path);
    view->control_path[sizeof view->control_path - 1] = 0;

    view->asks = false;
    view->excluded = is_own(view->listeners, view->listener_count, destination) ||
                     is_own(view->parks, view->park_count, destination) ||
                     is_own(from->own, at_most(from->own_count, MOSNHOOK_MAX_OWN), destination);
    if (!view->excluded && mosnhook_rules_fit(&rules, room)) {
        uint32_t rule = mosnhook_match(&rules, &from->rules + 1, destination);

        if (rule != MOSNHOOK_NO_RULE) {
            view->excluded = rule % MOSNHOOK_VERDICTS == MOSNHOOK_EXCLUDE;
            view->asks = rule % MOSNHOOK_VERDICTS == MOSNHOOK_ASK;
        }
    }
}

/* One try of the seqlock; `*sequence` is what was met. */
static bool try_to_read(const struct mosnhook_address *destination, struct page_view *view,
                        uint32_t *sequence)
{
    const struct mosnhook_page *from = page();

    *sequence = __atomic_load_n(&from->sequence, __ATOMIC_ACQUIRE);
    if (*sequence & 1)
        return false;
    copy(from, destination, view);
    view->generation = *sequence;
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return __atomic_load_n(&from->sequence, __ATOMIC_RELAXED) == *sequence;
}

bool page_known(void)
{
    return page()->magic == MOSNHOOK_MAGIC && page()->version == MOSNHOOK_VERSION;
}

static bool read_page(const struct mosnhook_address *destination, struct page_view *view)
{
    /* The odd number at which patience ended before: its writer is dead. */
    static uint32_t given_up;
    uint32_t sequence = 0;

    if (!page_known())
        return false;
    for (int i = 0; i < SPINS + PAUSES; i++) {
        if (try_to_read(destination, view, &sequence))
            return true;
        if ((sequence & 1) && sequence == __atomic_load_n(&given_up, __ATOMIC_RELAXED))
            return false;
        if (i >= SPINS)
            wait_briefly(1);
    }
    __atomic_store_n(&given_up, sequence, __ATOMIC_RELAXED);
    return false;
}

/* Whether it is an interface of the sidecar for applications, which has no one behind it now. */
static bool is_awaited(const struct mosnhook_address *destination, const struct page_view *view)
{
    for (size_t i = 0; i < environment.awaited_count; i++)
        if (environment.awaited[i] == destination->port && address_is_loopback(destination))
            /* One that drains listens still: for who takes back what it said. */
            return !page_serving(view) &&
                   !(view->known && page_heartbeat() && view->state == MOSNHOOK_STATE_DRAINING);
    return false;
}

void page_look(const struct mosnhook_address *destination, struct page_view *view)
{
    view->known = read_page(destination, view);
    if (!view->known) {
        view->generation = 1; /* odd, which no page that could be read is */
        view->excluded = address_is_loopback(destination);
        view->when_away = environment.when_away;
        view->wait_ms = environment.wait_ms;
    }
    if (view->excluded && is_awaited(destination, view))
        view->excluded = false;
}

/* One in the future, from before a reboot perhaps, is none. */
bool page_heartbeat(void)
{
    uint64_t alive = __atomic_load_n(&page()->alive_ns, __ATOMIC_ACQUIRE);

    return (uint64_t)now_ns() - alive <= (uint64_t)MOSNHOOK_STALE_AFTER_MS * MS;
}

bool page_accelerates(void)
{
    return page_known() && page()->accelerates;
}

bool page_elsewhere(void)
{
    return page_known() && __atomic_load_n(&page()->elsewhere, __ATOMIC_RELAXED);
}

/* Without a look at the sequence: as long as a sidecar lives these stay what they are. */
bool page_lists(const struct mosnhook_address *address)
{
    const struct mosnhook_page *from = page();

    return page_known() &&
           (is_own(from->listeners, at_most(from->listener_count, MOSNHOOK_MAX_LISTENERS),
                   address) ||
            is_own(from->parks, at_most(from->park_count, MOSNHOOK_MAX_PARKS), address));
}

bool page_full(void)
{
    return __atomic_load_n(&page()->full, __ATOMIC_RELAXED);
}

bool page_serving(const struct page_view *view)
{
    return view->known && view->state == MOSNHOOK_STATE_SERVING && page_heartbeat();
}
