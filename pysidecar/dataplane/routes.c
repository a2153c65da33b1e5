#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"
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
        if (routes[i].action > DP_DIRECT || routes[i].balance > DP_LEAST_CONNECTIONS ||
            routes[i].first_endpoint > endpoint_count ||
            routes[i].endpoint_count > endpoint_count - routes[i].first_endpoint)
            return false;
    return true;
}

struct table *table_create(const struct mosnhook_rules *rules, const struct dp_route *routes,
                           size_t route_count, const struct mosnhook_address *endpoints,
                           size_t endpoint_count)
{
    struct table *table;

    if (!table_is_consistent(rules, routes, route_count, endpoint_count)) {
        errno = EINVAL;
        return NULL;
    }
    table = calloc(1, sizeof *table);
    if (!table)
        return NULL;
    atomic_init(&table->references, 1);
    table->rules = malloc(rules->size);
    table->routes = calloc(route_count ? route_count : 1, sizeof *table->routes);
    table->endpoints = calloc(endpoint_count ? endpoint_count : 1, sizeof *table->endpoints);
    if (!table->rules || !table->routes || !table->endpoints) {
        table_release(table);
        errno = ENOMEM;
        return NULL;
    }
    memcpy(table->rules, rules, rules->size);
    table->route_count = route_count;
    table->endpoint_count = endpoint_count;
    for (size_t i = 0; i < route_count; i++) {
        table->routes[i].action = routes[i].action;
        table->routes[i].balance = routes[i].balance;
        table->routes[i].first_endpoint = routes[i].first_endpoint;
        table->routes[i].endpoint_count = routes[i].endpoint_count;
    }
    for (size_t i = 0; i < endpoint_count; i++)
        table->endpoints[i].address = endpoints[i];
    return table;
}

struct table *table_reference(struct table *table)
{
    atomic_fetch_add_explicit(&table->references, 1, memory_order_relaxed);
    return table;
}

void table_release(struct table *table)
{
    if (!table || atomic_fetch_sub_explicit(&table->references, 1, memory_order_acq_rel) > 1)
        return;
    for (size_t i = 0; table->endpoints && i < table->endpoint_count; i++)
        assert(atomic_load(&table->endpoints[i].active) == 0);
    free(table->rules);
    free(table->routes);
    free(table->endpoints);
    free(table);
}

uint32_t table_match(const struct table *table, const struct mosnhook_address *destination)
{
    return mosnhook_match(table->rules, table->rules + 1, destination);
}

uint64_t ejected_since(const struct dp *dp, uint64_t now_ms)
{
    uint32_t ejection_ms = atomic_load_explicit(&dp->ejection_ms, memory_order_relaxed);

    if (ejection_ms == 0)
        return UINT64_MAX;
    return now_ms > ejection_ms ? now_ms - ejection_ms : 0;
}

bool endpoint_is_ejected(const struct endpoint *endpoint, uint64_t since_ms)
{
    return atomic_load_explicit(&endpoint->failed_ms, memory_order_relaxed) > since_ms;
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

/* Who has an ejected endpoint's turn: the others, one after the other, so that none gets it all.
 * Where there are no others, the endpoint itself. */
static uint32_t stand_in(const struct endpoint *endpoints, uint32_t count, uint32_t turn,
                         uint64_t since_ms)
{
    uint32_t others = 0, which;

    for (uint32_t i = 0; i < count; i++)
        others += !endpoint_is_ejected(&endpoints[i], since_ms);
    which = others ? turn / count % others : 0;
    for (uint32_t i = 0; i < count; i++)
        if (!endpoint_is_ejected(&endpoints[i], since_ms) && which-- == 0)
            return i;
    return turn % count;
}

static bool is_better(const struct endpoint *a, const struct endpoint *b, uint64_t since_ms)
{
    bool a_ejected = endpoint_is_ejected(a, since_ms), b_ejected = endpoint_is_ejected(b, since_ms);

    if (a_ejected != b_ejected)
        return b_ejected;
    return atomic_load_explicit(&a->active, memory_order_relaxed) <
           atomic_load_explicit(&b->active, memory_order_relaxed);
}

uint32_t route_pick(struct table *table, struct route *route, uint64_t since_ms)
{
    const struct endpoint *endpoints = table->endpoints + route->first_endpoint;
    uint32_t turn = atomic_fetch_add_explicit(&route->next, 1, memory_order_relaxed);
    uint32_t start = turn % route->endpoint_count, best = start;

    if (route->balance == DP_ROUND_ROBIN)
        return endpoint_is_ejected(&endpoints[start], since_ms)
                   ? stand_in(endpoints, route->endpoint_count, turn, since_ms)
                   : start;
    /* Beginning at a moving start, so that equally loaded endpoints take turns. */
    for (uint32_t i = 1; i < route->endpoint_count; i++) {
        uint32_t candidate = (start + i) % route->endpoint_count;

        if (is_better(&endpoints[candidate], &endpoints[best], since_ms))
            best = candidate;
    }
    return best;
}

void route_give_back(struct route *route)
{
    atomic_fetch_sub_explicit(&route->next, 1, memory_order_relaxed);
}
