#include "upstream/cluster.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/owner.h"
#include "base/random.h"
#include "upstream/latency.h"

enum {
    TRIES = 16,
    COLD_TRIES = 8,   /* endpoints that are passed over since they are new */
    RING_TRIES = 256, /* points: of one endpoint there may be several in a row */
    WHOLE = 1 << 16,  /* of a share */
};

void registry_init(struct registry *registry, int event)
{
    *registry = (struct registry){.keeper.event = event};
}

void registry_close(struct registry *registry)
{
    keeper_collect(&registry->keeper);
    map_close(&registry->clusters);
    map_close(&registry->endpoints);
}

/* ---- interning ---- */

static struct registry *registry_of(const struct cluster *cluster)
{
    return OWNER(cluster->shared.keeper, struct registry, keeper);
}

static void cluster_free(struct cluster *cluster)
{
    struct registry *registry = registry_of(cluster);

    for (uint32_t i = 0; i < cluster->count; i++)
        endpoint_release(&registry->endpoints, cluster->endpoints[i]);
    weighing_free(cluster->weighing);
    maglev_free(cluster->maglev);
    free(cluster);
}

static void cluster_destroy(struct shared *shared)
{
    struct cluster *cluster = OWNER(shared, struct cluster, shared);

    map_remove(&registry_of(cluster)->clusters, &cluster->entry);
    cluster_free(cluster);
}

static const struct mosnhook_address *address_at(const struct cluster_plan *plan, uint32_t index)
{
    return plan->weighted ? &plan->weighted[index].address : &plan->addresses[index];
}

static bool needs_weighing(const struct cluster_plan *plan)
{
    return plan->weighted &&
           (plan->balance == DP_RING_HASH || weights_differ(plan->weighted, plan->count));
}

static bool weighs_the_same(const struct cluster *cluster, const struct cluster_plan *plan)
{
    if (!cluster->weighing || !plan->weighted)
        return !cluster->weighing && !needs_weighing(plan);
    return weighing_is(cluster->weighing, plan->weighted, plan->count,
                       plan->balance == DP_RING_HASH);
}

bool cluster_is(const struct cluster *cluster, const struct cluster_plan *plan)
{
    if (cluster->key != plan->key || cluster->scope != plan->scope ||
        cluster->balance != plan->balance || cluster->count != plan->count)
        return false;
    for (uint32_t i = 0; i < cluster->count; i++)
        if (memcmp(&cluster->endpoints[i]->address, address_at(plan, i),
                   sizeof(struct mosnhook_address)) != 0)
            return false;
    return weighs_the_same(cluster, plan);
}

/* False when out of memory: then it is to be freed. */
static bool fill(struct cluster *cluster, struct registry *registry,
                 const struct cluster_plan *plan)
{
    while (cluster->count < plan->count) {
        struct endpoint *endpoint =
            endpoint_intern(&registry->endpoints, plan->scope, address_at(plan, cluster->count));

        if (!endpoint)
            return false;
        cluster->endpoints[cluster->count++] = endpoint;
    }
    if (plan->balance == DP_MAGLEV) {
        cluster->maglev = maglev_create(plan->weighted, plan->count);
        if (!cluster->maglev)
            return false;
    }
    if (!needs_weighing(plan))
        return true;
    cluster->weighing = weighing_create(plan->weighted, plan->count, plan->balance == DP_RING_HASH);
    return cluster->weighing != NULL;
}

/* Not in the map yet. */
static struct cluster *cluster_create(struct registry *registry, const struct cluster_plan *plan)
{
    struct cluster *cluster = calloc(1, sizeof *cluster + plan->count * sizeof *cluster->endpoints);

    if (!cluster)
        return NULL;
    shared_init(&cluster->shared, &registry->keeper, cluster_destroy);
    cluster->key = plan->key;
    cluster->scope = plan->scope;
    cluster->balance = plan->balance;
    if (fill(cluster, registry, plan))
        return cluster;
    cluster_free(cluster);
    return NULL;
}

struct cluster *cluster_intern(struct registry *registry, const struct cluster_plan *plan)
{
    uint64_t hash = random_mix(plan->key + plan->scope);
    struct cluster *before = NULL, *cluster;

    for (struct map_entry *entry = map_first(&registry->clusters, hash); entry;
         entry = map_next(entry)) {
        cluster = OWNER(entry, struct cluster, entry);
        if (cluster_is(cluster, plan)) {
            shared_reference(&cluster->shared);
            return cluster;
        }
        if (!before && cluster->key == plan->key && cluster->scope == plan->scope)
            before = cluster;
    }
    cluster = cluster_create(registry, plan);
    if (cluster && before)
        atomic_init(&cluster->turn, atomic_load_explicit(&before->turn, memory_order_relaxed));
    if (cluster && !map_add(&registry->clusters, &cluster->entry, hash)) {
        cluster_free(cluster);
        return NULL;
    }
    return cluster;
}

/* ---- picking ---- */

static bool was_tried(const struct search *search, const struct endpoint *endpoint)
{
    for (uint32_t i = 0; i < search->tried_count; i++)
        if (search->tried[i] == endpoint)
            return true;
    return false;
}

static bool is_usable(const struct cluster *cluster, uint32_t index, const struct search *search)
{
    const struct endpoint *endpoint = cluster->endpoints[index];

    return !endpoint_is_ejected(endpoint, search->since_ms) && !was_tried(search, endpoint) &&
           (search->any || endpoint_is_available(endpoint, search->now_ms));
}

/* Whether it passes its turn on, which a new one often does: in the beginning nine of ten times. */
static bool is_too_cold(const struct cluster *cluster, uint32_t index, const struct search *search)
{
    uint64_t since_ms, age_ms, share;

    if (search->slow_start_ms == 0)
        return false;
    since_ms = atomic_load_explicit(&cluster->endpoints[index]->since_ms, memory_order_relaxed);
    age_ms = search->now_ms > since_ms ? search->now_ms - since_ms : 0;
    if (since_ms == 0 || age_ms >= search->slow_start_ms)
        return false;
    share = age_ms * WHOLE / search->slow_start_ms;
    if (share < WHOLE / 10)
        share = WHOLE / 10;
    return random_below(search->random, WHOLE) >= share;
}

/* Turns of one round: more than endpoints where weights differ. */
static uint32_t turns(const struct cluster *cluster)
{
    return cluster->weighing ? cluster->weighing->places.count : cluster->count;
}

static uint32_t index_at(const struct cluster *cluster, uint32_t turn)
{
    return cluster->weighing ? places_at(&cluster->weighing->places, turn) : turn;
}

static uint32_t greatest_divisor(uint32_t a, uint32_t b)
{
    while (b) {
        uint32_t rest = a % b;

        a = b;
        b = rest;
    }
    return a;
}

/* A usable one, or `count`: none is. In an order of its own, so that not always the same one
 * follows those that are not, and has their share. */
static uint32_t find_any(const struct cluster *cluster, const struct search *search)
{
    uint32_t count = cluster->count, at = random_below(search->random, count), stride;

    do
        stride = 1 + random_below(search->random, count - 1);
    while (greatest_divisor(count, stride) != 1); /* it comes to all of them */
    for (uint32_t i = 0; i < count; i++) {
        if (is_usable(cluster, at, search))
            return at;
        at = (uint32_t)(((uint64_t)at + stride) % count);
    }
    return count;
}

/* The turn of one that is not usable is over at once: the next one has not two turns, but its own
 * earlier. */
static uint32_t pick_by_turn(struct cluster *cluster, const struct search *search)
{
    uint32_t round = turns(cluster), first = 0, taken = 0, cold = 0, at;

    while (taken < TRIES && taken < round && cold < COLD_TRIES) {
        at = index_at(cluster,
                      atomic_fetch_add_explicit(&cluster->turn, 1, memory_order_relaxed) % round);
        if (is_usable(cluster, at, search)) {
            if (!is_too_cold(cluster, at, search))
                return at;
            cold++;
            continue;
        }
        if (taken++ == 0)
            first = at;
    }
    at = find_any(cluster, search);
    if (at < cluster->count)
        return at;
    /* None is: the first one is tried, and the others in their turn. */
    atomic_fetch_sub_explicit(&cluster->turn, taken - 1, memory_order_relaxed);
    return first;
}

static uint32_t any_turn(const struct cluster *cluster, const struct search *search)
{
    return index_at(cluster, random_below(search->random, turns(cluster)));
}

static uint32_t pick_at_random(const struct cluster *cluster, const struct search *search)
{
    uint32_t at;

    for (int i = 0, cold = 0; i < TRIES; i++) {
        at = any_turn(cluster, search);
        if (is_usable(cluster, at, search) &&
            (cold == COLD_TRIES || !is_too_cold(cluster, at, search)))
            return at;
        cold += cold < COLD_TRIES;
    }
    at = find_any(cluster, search);
    return at < cluster->count ? at : any_turn(cluster, search);
}

/* What speaks against another request there. */
static uint64_t cost_of(const struct cluster *cluster, uint32_t index, const struct search *search)
{
    const struct endpoint *endpoint = cluster->endpoints[index];

    if (cluster->balance == DP_PEAK_EWMA)
        return latency_cost(endpoint, search->now_ms);
    return atomic_load_explicit(&endpoint->active, memory_order_relaxed);
}

/* By weight. */
static bool is_better(const struct cluster *cluster, uint32_t one, uint32_t other,
                      const struct search *search)
{
    const struct weighing *weighing = cluster->weighing;
    uint64_t one_costs = cost_of(cluster, one, search),
             other_costs = cost_of(cluster, other, search);

    if (!weighing)
        return one_costs < other_costs;
    return one_costs * weighing->weights[other] < other_costs * weighing->weights[one];
}

/* Another endpoint than `one`; where weights differ it may be the same. */
static uint32_t another_turn(const struct cluster *cluster, uint32_t one,
                             const struct search *search)
{
    uint32_t count = cluster->count;

    if (cluster->weighing)
        return any_turn(cluster, search);
    return (one + 1 + random_below(search->random, count - 1)) % count;
}

/* The better of two random ones. That is nearly as even as the least busy of all (Mitzenmacher,
 * "The Power of Two Choices in Randomized Load Balancing", 2001), costs the same for any number,
 * and does not send all workers to the same one at once. */
static uint32_t pick_better(const struct cluster *cluster, const struct search *search)
{
    uint32_t one = pick_at_random(cluster, search);

    for (int i = 0; i < TRIES && cluster->count > 1; i++) {
        uint32_t other = another_turn(cluster, one, search);

        if (other != one && is_usable(cluster, other, search))
            return is_better(cluster, other, one, search) && !is_too_cold(cluster, other, search)
                       ? other
                       : one;
    }
    return one;
}

/* The next usable one on the ring: the same one for each that has this hash. */
static uint32_t pick_by_hash(const struct cluster *cluster, const struct search *search)
{
    const struct places *ring = &cluster->weighing->places;
    uint32_t first = places_from(ring, (uint32_t)(search->hash >> 32)), at;

    for (uint32_t i = 0; i < RING_TRIES && i < ring->count; i++) {
        at = places_at(ring, (uint32_t)(((uint64_t)first + i) % ring->count));
        if (is_usable(cluster, at, search))
            return at;
    }
    at = find_any(cluster, search);
    return at < cluster->count ? at : places_at(ring, first % ring->count);
}

/* The same for Maglev's table. Where the endpoint of a hash is not usable, its hashes are shared by
 * all others. */
static uint32_t pick_by_table(const struct cluster *cluster, const struct search *search)
{
    uint32_t at;

    for (uint32_t i = 0; i < TRIES; i++) {
        at = maglev_at(cluster->maglev, search->hash, i);
        if (is_usable(cluster, at, search))
            return at;
    }
    at = find_any(cluster, search);
    return at < cluster->count ? at : maglev_at(cluster->maglev, search->hash, 0);
}

static uint32_t pick(struct cluster *cluster, const struct search *search)
{
    switch (cluster->balance) {
    case DP_LEAST_CONNECTIONS:
    case DP_LEAST_REQUESTS:
    case DP_PEAK_EWMA:
        return pick_better(cluster, search);
    case DP_RANDOM:
        return pick_at_random(cluster, search);
    case DP_RING_HASH:
        return pick_by_hash(cluster, search);
    case DP_MAGLEV:
        return pick_by_table(cluster, search);
    default:
        return pick_by_turn(cluster, search);
    }
}

uint32_t cluster_pick(struct cluster *cluster, uint64_t since_ms, uint64_t *random)
{
    return cluster_pick_index(cluster, &(struct search){.since_ms = since_ms, .random = random});
}

uint32_t cluster_pick_index(struct cluster *cluster, const struct search *search)
{
    return pick(cluster, search);
}

/* True: it is one that is neither ejected nor passed over. False: there is none, and the index is
 * of any. */
static bool find_usable(struct cluster *cluster, const struct search *search, uint32_t *index)
{
    *index = pick(cluster, search);
    return is_usable(cluster, *index, search);
}

struct endpoint *cluster_pick_sound(struct cluster *cluster, const struct search *search)
{
    uint32_t index;

    return find_usable(cluster, search, &index) ? cluster->endpoints[index] : NULL;
}

struct endpoint *cluster_pick_untried(struct cluster *cluster, const struct search *search)
{
    struct search any = *search;
    uint32_t index;

    if (find_usable(cluster, search, &index))
        return cluster->endpoints[index];
    any.since_ms = UINT64_MAX;
    if (is_usable(cluster, index, &any)) /* whose turn it was */
        return cluster->endpoints[index];
    return find_usable(cluster, &any, &index) ? cluster->endpoints[index] : NULL;
}

/* ---- counting ---- */

enum { COUNT_MS = 1000 }; /* from one to the next at most, where some are not available */

static uint32_t count_available(struct cluster *cluster, uint32_t changes, uint64_t now_ms)
{
    uint64_t until_ms = now_ms + COUNT_MS;
    uint32_t available = 0;

    for (uint32_t i = 0; i < cluster->count; i++) {
        const struct endpoint *endpoint = cluster->endpoints[i];
        uint64_t ejected_ms =
            atomic_load_explicit(&endpoint->ejected_until_ms, memory_order_relaxed);

        available += endpoint_is_available(endpoint, now_ms);
        if (ejected_ms > now_ms && ejected_ms < until_ms)
            until_ms = ejected_ms;
    }
    if (available == cluster->count)
        until_ms = UINT64_MAX;
    atomic_store_explicit(&cluster->counted_until_ms, until_ms, memory_order_relaxed);
    atomic_store_explicit(&cluster->counted, (uint64_t)changes << 32 | available,
                          memory_order_relaxed);
    return available;
}

uint32_t cluster_available(struct cluster *cluster, uint32_t changes, uint64_t now_ms)
{
    uint64_t counted;

    if (changes == 0)
        return cluster->count;
    counted = atomic_load_explicit(&cluster->counted, memory_order_relaxed);
    if (counted >> 32 == changes &&
        atomic_load_explicit(&cluster->counted_until_ms, memory_order_relaxed) > now_ms)
        return (uint32_t)counted;
    return count_available(cluster, changes, now_ms);
}

void cluster_give_back(struct cluster *cluster)
{
    if (cluster->balance == DP_ROUND_ROBIN)
        atomic_fetch_sub_explicit(&cluster->turn, 1, memory_order_relaxed);
}
