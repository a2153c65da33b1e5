#include "upstream/cluster.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/owner.h"
#include "base/random.h"

enum { TRIES = 16 };

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
    free(cluster);
}

static void cluster_destroy(struct shared *shared)
{
    struct cluster *cluster = OWNER(shared, struct cluster, shared);

    map_remove(&registry_of(cluster)->clusters, &cluster->entry);
    cluster_free(cluster);
}

bool cluster_is(const struct cluster *cluster, uint32_t scope, const struct dp_route *route,
                const struct mosnhook_address *endpoints)
{
    if (cluster->key != route->key || cluster->scope != scope ||
        cluster->balance != route->balance || cluster->count != route->endpoint_count)
        return false;
    for (uint32_t i = 0; i < cluster->count; i++)
        if (memcmp(&cluster->endpoints[i]->address, &endpoints[i], sizeof *endpoints) != 0)
            return false;
    return true;
}

/* Not in the map yet. */
static struct cluster *cluster_create(struct registry *registry, uint32_t scope,
                                      const struct dp_route *route,
                                      const struct mosnhook_address *endpoints)
{
    struct cluster *cluster =
        calloc(1, sizeof *cluster + route->endpoint_count * sizeof *cluster->endpoints);

    if (!cluster)
        return NULL;
    shared_init(&cluster->shared, &registry->keeper, cluster_destroy);
    cluster->key = route->key;
    cluster->scope = scope;
    cluster->balance = route->balance;
    while (cluster->count < route->endpoint_count) {
        struct endpoint *endpoint =
            endpoint_intern(&registry->endpoints, scope, &endpoints[cluster->count]);

        if (!endpoint) {
            cluster_free(cluster);
            return NULL;
        }
        cluster->endpoints[cluster->count++] = endpoint;
    }
    return cluster;
}

struct cluster *cluster_intern(struct registry *registry, uint32_t scope,
                               const struct dp_route *route,
                               const struct mosnhook_address *endpoints)
{
    uint64_t hash = random_mix(route->key + scope);
    struct cluster *before = NULL, *cluster;

    for (struct map_entry *entry = map_first(&registry->clusters, hash); entry;
         entry = map_next(entry)) {
        cluster = OWNER(entry, struct cluster, entry);
        if (cluster_is(cluster, scope, route, endpoints)) {
            shared_reference(&cluster->shared);
            return cluster;
        }
        if (!before && cluster->key == route->key && cluster->scope == scope)
            before = cluster;
    }
    cluster = cluster_create(registry, scope, route, endpoints);
    if (cluster && before)
        atomic_init(&cluster->turn, atomic_load_explicit(&before->turn, memory_order_relaxed));
    if (cluster && !map_add(&registry->clusters, &cluster->entry, hash)) {
        cluster_free(cluster);
        return NULL;
    }
    return cluster;
}

/* ---- picking ---- */

static bool is_ejected(const struct cluster *cluster, uint32_t index, uint64_t since_ms)
{
    return endpoint_is_ejected(cluster->endpoints[index], since_ms);
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

/* One that is not ejected, or `count`: all are. In an order of its own, so that not always the same
 * one follows those that are ejected, and has their share. */
static uint32_t find_any(const struct cluster *cluster, uint64_t since_ms, uint64_t *random)
{
    uint32_t count = cluster->count, at = random_below(random, count), stride;

    do
        stride = 1 + random_below(random, count - 1);
    while (greatest_divisor(count, stride) != 1); /* it comes to all of them */
    for (uint32_t i = 0; i < count; i++) {
        if (!is_ejected(cluster, at, since_ms))
            return at;
        at = (uint32_t)(((uint64_t)at + stride) % count);
    }
    return count;
}

/* An ejected one's turn is over at once: the next one has not two turns, but its own earlier. */
static uint32_t pick_by_turn(struct cluster *cluster, uint64_t since_ms, uint64_t *random)
{
    uint32_t count = cluster->count, first = 0, taken = 0, at;

    while (taken < TRIES && taken < count) {
        at = atomic_fetch_add_explicit(&cluster->turn, 1, memory_order_relaxed) % count;
        if (!is_ejected(cluster, at, since_ms))
            return at;
        if (taken++ == 0)
            first = at;
    }
    at = find_any(cluster, since_ms, random);
    if (at < count)
        return at;
    /* All are: the first one is tried, and the others in their turn. */
    atomic_fetch_sub_explicit(&cluster->turn, taken - 1, memory_order_relaxed);
    return first;
}

static uint32_t pick_at_random(const struct cluster *cluster, uint64_t since_ms, uint64_t *random)
{
    for (int i = 0; i < TRIES; i++) {
        uint32_t at = random_below(random, cluster->count);

        if (!is_ejected(cluster, at, since_ms))
            return at;
    }
    return find_any(cluster, since_ms, random);
}

static uint32_t active_at(const struct cluster *cluster, uint32_t index)
{
    return atomic_load_explicit(&cluster->endpoints[index]->active, memory_order_relaxed);
}

/* The less busy of two random ones. That is nearly as even as the least busy of all (Mitzenmacher,
 * "The Power of Two Choices in Randomized Load Balancing", 2001), costs the same for any number,
 * and does not send all workers to the same one at once. */
static uint32_t pick_less_busy(const struct cluster *cluster, uint64_t since_ms, uint64_t *random)
{
    uint32_t count = cluster->count, one = pick_at_random(cluster, since_ms, random);

    if (one == count)
        return random_below(random, count);
    for (int i = 0; i < TRIES && count > 1; i++) {
        uint32_t other = (one + 1 + random_below(random, count - 1)) % count;

        if (!is_ejected(cluster, other, since_ms))
            return active_at(cluster, other) < active_at(cluster, one) ? other : one;
    }
    return one;
}

uint32_t cluster_pick(struct cluster *cluster, uint64_t since_ms, uint64_t *random)
{
    if (cluster->balance == DP_LEAST_CONNECTIONS)
        return pick_less_busy(cluster, since_ms, random);
    return pick_by_turn(cluster, since_ms, random);
}

void cluster_give_back(struct cluster *cluster)
{
    if (cluster->balance == DP_ROUND_ROBIN)
        atomic_fetch_sub_explicit(&cluster->turn, 1, memory_order_relaxed);
}
