/* Reading the policy page, whatever is in it, and while it changes.
 *
 * The first byte of an input says what is right in its page and whether a thread writes to it
 * meanwhile. Destination, rules and the rest of the page follow. What the hook takes from it must
 * be in bounds, and from a page that is at rest, what it says. */
#include <pthread.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../hook/page.c"

#include "fuzz.h"

enum {
    IS_PAGE = 1,     /* magic, version and an even sequence */
    KEEPS_RULES = 2, /* their header is plausible */
    CHANGES = 4,
};

enum { CHANGES_AT_A_TIME = 1000, LOOKS = 20 };

struct environment environment;
static struct mosnhook_page *writable;
static sem_t begin, done; /* of changes */

int64_t now_ns(void)
{
    return 1000000000;
}

/* The hook waits for a writer that has begun, and gives up. */
void wait_briefly(int ms)
{
    (void)ms;
}

/* There are always descriptors here. */
int apart(int keep, void (*run)(void *), void *argument)
{
    (void)keep, (void)run, (void)argument;
    return -EMFILE;
}

/* Writes where it hurts: counts, the sequence, rules. */
static void *change(void *argument)
{
    uint32_t *words = argument, *rules = words + offsetof(struct mosnhook_page, rules) / 4;
    uint32_t random = 1;

    for (;;) {
        while (sem_wait(&begin) < 0)
            continue;
        for (int i = 0; i < CHANGES_AT_A_TIME; i++) {
            random = random * 1664525 + 1013904223;
            __atomic_store_n(&words[random >> 8 & 63], random >> (random & 31), __ATOMIC_RELAXED);
            __atomic_store_n(&rules[random >> 16 & 63], random >> (random >> 5 & 31),
                             __ATOMIC_RELAXED);
        }
        sem_post(&done);
    }
    return NULL;
}

int LLVMFuzzerInitialize(int *count, char ***arguments)
{
    static char path[64];
    pthread_t writer;
    int fd = memfd_create("page", MFD_CLOEXEC);

    (void)count;
    (void)arguments;
    CHECK(fd >= 0 && ftruncate(fd, MOSNHOOK_PAGE_SIZE) == 0 && fchmod(fd, 0600) == 0);
    writable = mmap(NULL, MOSNHOOK_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(writable != MAP_FAILED);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    environment.policy = path;
    page_open();
    writable->magic = 1;
    CHECK(page()->magic == 1);
    CHECK(pthread_create(&writer, NULL, change, writable) == 0);
    return 0;
}

static void fill(struct input *input, uint8_t kind)
{
    uint16_t arrays = take_u16(input) % 1024;

    take(input, writable + 1, arrays);
    take(input, &writable->rules, sizeof writable->rules);
    take(input, writable, offsetof(struct mosnhook_page, rules));
    if (kind & IS_PAGE) {
        writable->magic = MOSNHOOK_MAGIC;
        writable->version = MOSNHOOK_VERSION;
        writable->sequence &= ~1u;
    }
    if (kind & KEEPS_RULES) {
        writable->rules.boundary_count %= 64;
        writable->rules.prefix_count %= 64;
        writable->rules.segment_count %= 64;
        writable->rules.size = MOSNHOOK_PAGE_SIZE - offsetof(struct mosnhook_page, rules);
    }
}

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static bool lists(const struct mosnhook_address *addresses, uint32_t count,
                  const struct mosnhook_address *wanted)
{
    for (uint32_t i = 0; i < count; i++)
        if (addresses[i].port == wanted->port &&
            (memcmp(addresses[i].ip, wanted->ip, 16) == 0 ||
             (address_is_unspecified(&addresses[i]) && address_is_loopback(wanted))))
            return true;
    return false;
}

/* The verdict, of a page at rest: see rules.c for the lookup. */
static uint32_t judge(const struct mosnhook_address *destination)
{
    uint32_t rule = MOSNHOOK_NO_RULE;

    if (lists(writable->listeners, smaller(writable->listener_count, MOSNHOOK_MAX_LISTENERS),
              destination) ||
        lists(writable->parks, smaller(writable->park_count, MOSNHOOK_MAX_PARKS), destination) ||
        lists(writable->own, smaller(writable->own_count, MOSNHOOK_MAX_OWN), destination))
        return MOSNHOOK_EXCLUDE;
    if (mosnhook_rules_fit(&writable->rules,
                           MOSNHOOK_PAGE_SIZE - offsetof(struct mosnhook_page, rules)))
        rule = mosnhook_match(&writable->rules, writable + 1, destination);
    return rule == MOSNHOOK_NO_RULE ? MOSNHOOK_CAPTURE : rule % MOSNHOOK_VERDICTS;
}

static void check(const struct page_view *view, const struct mosnhook_address *destination,
                  bool at_rest)
{
    uint32_t verdict;

    CHECK(!(view->excluded && view->asks));
    CHECK(view->generation % 2 == 0);
    CHECK(view->listener_count <= MOSNHOOK_MAX_LISTENERS && view->park_count <= MOSNHOOK_MAX_PARKS);
    CHECK(memchr(view->control_path, 0, sizeof view->control_path));
    if (!at_rest)
        return;
    verdict = judge(destination);
    CHECK(view->excluded == (verdict == MOSNHOOK_EXCLUDE));
    CHECK(view->asks == (verdict == MOSNHOOK_ASK));
    CHECK(view->generation == writable->sequence && view->state == writable->state);
    CHECK(view->transport == writable->transport && view->when_away == writable->when_away);
    CHECK(view->wait_ms == writable->wait_ms);
    CHECK(view->listener_count == smaller(writable->listener_count, MOSNHOOK_MAX_LISTENERS));
    CHECK(view->park_count == smaller(writable->park_count, MOSNHOOK_MAX_PARKS));
    CHECK(memcmp(view->listeners, writable->listeners,
                 view->listener_count * sizeof *view->listeners) == 0);
    CHECK(memcmp(view->parks, writable->parks, view->park_count * sizeof *view->parks) == 0);
    CHECK(strncmp(view->control_path, writable->control_path, sizeof view->control_path - 1) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    struct mosnhook_address destination;
    struct page_view view;
    uint8_t kind = take_u8(&input);
    bool is_page;

    take(&input, &destination, sizeof destination);
    fill(&input, kind);
    is_page = writable->magic == MOSNHOOK_MAGIC && writable->version == MOSNHOOK_VERSION &&
              writable->sequence % 2 == 0;
    if (kind & CHANGES)
        sem_post(&begin);
    for (int i = 0; i < (kind & CHANGES ? LOOKS : 1); i++) {
        page_look(&destination, &view);
        if (!(kind & CHANGES))
            CHECK(view.known == is_page);
        if (view.known)
            check(&view, &destination, !(kind & CHANGES));
        (void)page_serving(&view);
        (void)page_accelerates();
    }
    while (kind & CHANGES && sem_wait(&done) < 0)
        continue;
    return 0;
}
