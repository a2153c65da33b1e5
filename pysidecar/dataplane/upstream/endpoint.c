#include "upstream/endpoint.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/owner.h"
#include "base/random.h"
#include "upstream/tally.h"

static uint64_t hash_address(uint32_t scope, const struct mosnhook_address *address)
{
    uint64_t words[3], hash = scope;

    _Static_assert(sizeof *address == sizeof words, "every byte of it counts");
    memcpy(words, address, sizeof words);
    for (int i = 0; i < 3; i++)
        hash = random_mix(hash ^ words[i]);
    return hash;
}

static struct endpoint *find(const struct map *endpoints, uint64_t hash, uint32_t scope,
                             const struct mosnhook_address *address)
{
    for (struct map_entry *entry = map_first(endpoints, hash); entry; entry = map_next(entry)) {
        struct endpoint *endpoint = OWNER(entry, struct endpoint, entry);

        if (endpoint->scope == scope && memcmp(&endpoint->address, address, sizeof *address) == 0)
            return endpoint;
    }
    return NULL;
}

struct endpoint *endpoint_find(const struct map *endpoints, uint32_t scope,
                               const struct mosnhook_address *address)
{
    return find(endpoints, hash_address(scope, address), scope, address);
}

struct endpoint *endpoint_intern(struct map *endpoints, uint32_t scope,
                                 const struct mosnhook_address *address)
{
    uint64_t hash = hash_address(scope, address);
    struct endpoint *endpoint = find(endpoints, hash, scope, address);

    if (endpoint) {
        endpoint->references++;
        return endpoint;
    }
    endpoint = calloc(1, sizeof *endpoint);
    if (!endpoint || !map_add(endpoints, &endpoint->entry, hash)) {
        free(endpoint);
        return NULL;
    }
    endpoint->address = *address;
    endpoint->scope = scope;
    endpoint->references = 1;
    return endpoint;
}

void endpoint_release(struct map *endpoints, struct endpoint *endpoint)
{
    if (--endpoint->references > 0)
        return;
    assert(atomic_load(&endpoint->active) == 0);
    map_remove(endpoints, &endpoint->entry);
    free(endpoint_tallies(endpoint));
    free(endpoint);
}

/* ---- what is counted ---- */

enum { CACHE_LINE = 64 };

/* In the place of tallies for which there was no memory once: what is counted from then on would
 * lack what was not counted before, such as requests under way. */
static struct tally uncounted;

struct tally *endpoint_tallies(struct endpoint *endpoint)
{
    struct tally *tallies = atomic_load_explicit(&endpoint->tallies, memory_order_acquire);

    return tallies == &uncounted ? NULL : tallies;
}

static struct tally *make_tallies(uint32_t workers)
{
    size_t size = (workers * sizeof(struct tally) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    struct tally *tallies = aligned_alloc(CACHE_LINE, size);

    if (!tallies)
        return &uncounted;
    memset((void *)tallies, 0, size);
    return tallies;
}

/* Several workers may be the first. */
static struct tally *add_tallies(struct endpoint *endpoint)
{
    struct tally *made = make_tallies(endpoint->workers), *others = NULL;

    if (atomic_compare_exchange_strong(&endpoint->tallies, &others, made))
        return made;
    if (made != &uncounted)
        free(made);
    return others;
}

struct tally *endpoint_tally(struct endpoint *endpoint, unsigned worker)
{
    struct tally *tallies;

    if (endpoint->workers == 0)
        return NULL;
    tallies = atomic_load_explicit(&endpoint->tallies, memory_order_acquire);
    if (!tallies)
        tallies = add_tallies(endpoint);
    return tallies == &uncounted ? NULL : &tallies[worker];
}

/* ---- how it does ---- */

bool endpoint_is_ejected(const struct endpoint *endpoint, uint64_t since_ms)
{
    return atomic_load_explicit(&endpoint->failed_ms, memory_order_relaxed) > since_ms;
}

bool endpoint_is_available(const struct endpoint *endpoint, uint64_t now_ms)
{
    return !atomic_load_explicit(&endpoint->unhealthy, memory_order_relaxed) &&
           atomic_load_explicit(&endpoint->ejected_until_ms, memory_order_relaxed) <= now_ms;
}

void endpoint_failed(struct endpoint *endpoint, uint64_t now_ms)
{
    if (endpoint)
        atomic_store_explicit(&endpoint->failed_ms, now_ms, memory_order_relaxed);
}

void endpoint_succeeded(struct endpoint *endpoint, uint64_t until_ms)
{
    uint64_t failed_ms =
        endpoint ? atomic_load_explicit(&endpoint->failed_ms, memory_order_relaxed) : 0;

    if (failed_ms > 0 && failed_ms < until_ms)
        atomic_store_explicit(&endpoint->failed_ms, 0, memory_order_relaxed);
}
