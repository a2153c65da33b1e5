/* pysidecar/dataplane/upstream/ for tests in Python: what a worker and the control thread do with
 * it, without sockets. Endpoints have a number here, which is the last part of their address. */
#include <assert.h>
#include <stdlib.h>

#include "base/owner.h"
#include "base/random.h"
#include "upstream/table.h"

struct shim_route {
    uint64_t key;
    uint32_t balance, first_endpoint, endpoint_count;
};

static struct mosnhook_address address_of(uint32_t number)
{
    struct mosnhook_address address = {.ip = {[10] = 0xff, [11] = 0xff, [12] = 10}, .port = 80};

    address.ip[13] = (uint8_t)(number >> 16);
    address.ip[14] = (uint8_t)(number >> 8);
    address.ip[15] = (uint8_t)number;
    return address;
}

static uint32_t number_of(const struct endpoint *endpoint)
{
    const uint8_t *ip = endpoint->address.ip;

    return (uint32_t)ip[13] << 16 | (uint32_t)ip[14] << 8 | ip[15];
}

struct registry *shim_registry(void)
{
    struct registry *registry = malloc(sizeof *registry);

    registry_init(registry, -1);
    return registry;
}

void shim_close(struct registry *registry)
{
    registry_close(registry);
    free(registry);
}

void shim_collect(struct registry *registry)
{
    keeper_collect(&registry->keeper);
}

size_t shim_endpoint_count(const struct registry *registry)
{
    return registry->endpoints.count;
}

size_t shim_cluster_count(const struct registry *registry)
{
    return registry->clusters.count;
}

size_t shim_bucket_count(const struct registry *registry)
{
    return registry->endpoints.bucket_count;
}

struct table *shim_table(struct registry *registry, uint32_t scope, struct table *before,
                         const struct shim_route *shims, size_t route_count,
                         const uint32_t *numbers, size_t endpoint_count)
{
    static const struct mosnhook_rules none = {.size = sizeof none};
    struct mosnhook_address *endpoints = calloc(endpoint_count + 1, sizeof *endpoints);
    struct dp_route *routes = calloc(route_count + 1, sizeof *routes);
    struct table *table;

    for (size_t i = 0; i < endpoint_count; i++)
        endpoints[i] = address_of(numbers[i]);
    for (size_t i = 0; i < route_count; i++)
        routes[i] = (struct dp_route){
            .key = shims[i].key,
            .balance = shims[i].balance,
            .first_endpoint = shims[i].first_endpoint,
            .endpoint_count = shims[i].endpoint_count,
        };
    table = table_create(registry, scope, &none, routes, route_count, endpoints, endpoint_count,
                         before);
    free(endpoints);
    free(routes);
    return table;
}

void shim_reference(struct table *table)
{
    shared_reference(&table->shared);
}

/* NULL: the route has no endpoints. */
struct cluster *shim_take_cluster(struct table *table, size_t route)
{
    struct cluster *cluster = table->routes[route].cluster;

    if (cluster)
        shared_reference(&cluster->shared);
    return cluster;
}

void shim_give_cluster(struct cluster *cluster)
{
    shared_release(&cluster->shared);
}

void shim_change_active(struct cluster *cluster, uint32_t index, int change)
{
    atomic_fetch_add(&cluster->endpoints[index]->active, (unsigned)change);
}

void shim_failed(struct cluster *cluster, uint32_t index, uint64_t now_ms)
{
    endpoint_failed(cluster->endpoints[index], now_ms);
}

void shim_succeeded(struct cluster *cluster, uint32_t index)
{
    endpoint_succeeded(cluster->endpoints[index], UINT64_MAX);
}

/* So many picks of connections that are over at once (`hold`: that stay), as counts by index. */
void shim_pick_many(struct cluster *cluster, uint64_t since_ms, uint64_t *random, uint32_t picks,
                    int hold, uint32_t *counts)
{
    for (uint32_t i = 0; i < picks; i++) {
        uint32_t index = cluster_pick(cluster, since_ms, random);

        counts[index]++;
        if (hold)
            shim_change_active(cluster, index, 1);
    }
}

/* Everything that is known of the endpoints of a scope, in no order. */
size_t shim_endpoints(const struct registry *registry, uint32_t scope, uint32_t *numbers,
                      uint32_t *active, uint64_t *failed_ms, size_t max)
{
    size_t count = 0;

    for (size_t i = 0; i < registry->endpoints.bucket_count; i++)
        for (struct map_entry *entry = registry->endpoints.buckets[i]; entry; entry = entry->next) {
            struct endpoint *endpoint = OWNER(entry, struct endpoint, entry);

            if (endpoint->scope != scope)
                continue;
            assert(count < max);
            numbers[count] = number_of(endpoint);
            active[count] = atomic_load(&endpoint->active);
            failed_ms[count++] = atomic_load(&endpoint->failed_ms);
        }
    return count;
}
