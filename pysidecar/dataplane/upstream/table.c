#include "upstream/table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/owner.h"
#include "rules.h"

static bool table_is_consistent(const struct mosnhook_rules *rules, const struct dp_route *routes,
                                size_t route_count, size_t endpoint_count)
{
    const struct mosnhook_boundary *boundaries = (const void *)(rules + 1);
    const struct mosnhook_prefix *prefixes = (const void *)(boundaries + rules->boundary_count);
    const struct mosnhook_segment *segments = (const void *)(prefixes + rules->prefix_count);

    if (!mosnhook_rules_fit(rules, UINT32_MAX))
        return false;
    for (uint32_t i = 0; i < rules->segment_count; i++)
        if (segments[i].rule >= route_count)
            return false;
    for (size_t i = 0; i < route_count; i++)
        if (routes[i].action > DP_REQUESTS || routes[i].balance > DP_LEAST_CONNECTIONS ||
            routes[i].protocol > DP_AUTO || routes[i].undetected > DP_REFUSE ||
            routes[i].first_endpoint > endpoint_count ||
            routes[i].endpoint_count > endpoint_count - routes[i].first_endpoint)
            return false;
    return true;
}

static void table_destroy(struct shared *shared)
{
    struct table *table = OWNER(shared, struct table, shared);

    for (size_t i = 0; i < table->route_count; i++)
        if (table->routes[i].cluster)
            keeper_release(&table->routes[i].cluster->shared);
    free(table->rules);
    free(table);
}

/* A table that is made from the one before, in which most routes are the same ones, in the same
 * order: then they are found by going along. */
struct making {
    struct table *table;
    struct registry *registry;
    uint32_t scope;
    const struct table *before; /* NULL: none */
    size_t at;                  /* the route of it that would come next */
};

/* With one more reference; NULL: it is not there. */
static struct cluster *cluster_before(struct making *making, const struct cluster_plan *plan)
{
    size_t count = making->before ? making->before->route_count : 0;

    for (size_t at = making->at; at < count && at <= making->at + 1; at++) {
        struct cluster *cluster = making->before->routes[at].cluster;

        if (cluster && cluster_is(cluster, plan)) {
            making->at = at + 1;
            shared_reference(&cluster->shared);
            return cluster;
        }
    }
    return NULL;
}

/* False when out of memory. */
static bool add_route(struct making *making, const struct dp_route *route,
                      const struct mosnhook_address *all_endpoints)
{
    struct cluster_plan plan = {
        .key = route->key,
        .scope = making->scope,
        .balance = route->balance,
        .count = route->endpoint_count,
        .addresses = &all_endpoints[route->first_endpoint],
    };
    struct cluster *cluster = NULL;

    if (route->endpoint_count > 0) {
        cluster = cluster_before(making, &plan);
        if (!cluster)
            cluster = cluster_intern(making->registry, &plan);
        if (!cluster)
            return false;
    } else if (making->before && making->at < making->before->route_count &&
               !making->before->routes[making->at].cluster) {
        making->at++;
    }
    making->table->routes[making->table->route_count++] = (struct route){
        .action = route->action,
        .protocol = route->protocol,
        .detect_ms = route->detect_ms,
        .undetected = route->undetected,
        .cluster = cluster,
    };
    return true;
}

struct table *table_create(struct registry *registry, uint32_t scope,
                           const struct mosnhook_rules *rules, const struct dp_route *routes,
                           size_t route_count, const struct mosnhook_address *endpoints,
                           size_t endpoint_count, const struct table *before)
{
    struct making making = {.registry = registry, .scope = scope, .before = before};
    struct table *table;

    if (!table_is_consistent(rules, routes, route_count, endpoint_count)) {
        errno = EINVAL;
        return NULL;
    }
    table = calloc(1, sizeof *table + route_count * sizeof *table->routes);
    if (!table)
        return NULL;
    shared_init(&table->shared, &registry->keeper, table_destroy);
    table->rules = malloc(rules->size);
    if (!table->rules)
        goto out_of_memory;
    memcpy(table->rules, rules, rules->size);
    making.table = table;
    for (size_t i = 0; i < route_count; i++)
        if (!add_route(&making, &routes[i], endpoints))
            goto out_of_memory;
    return table;

out_of_memory:
    keeper_release(&table->shared);
    errno = ENOMEM;
    return NULL;
}

void table_release(struct table *table)
{
    if (table)
        shared_release(&table->shared);
}

void table_drop(struct table *table)
{
    if (table)
        keeper_release(&table->shared);
}

uint32_t table_match(const struct table *table, const struct mosnhook_address *destination)
{
    return mosnhook_match(table->rules, table->rules + 1, destination);
}
