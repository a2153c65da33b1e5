#include "upstream/choice.h"

#include <string.h>

#include "base/sockaddr.h"
#include "rules.h"
#include "upstream/routes.h"

enum { MAX_POSTPONED = 64 }; /* attempts: the bits of choice->postponed */

struct mosnhook_address choice_default_upstream(const struct origin *origin)
{
    struct mosnhook_address upstream = origin->listener->application;

    if (address_is_zero(&upstream))
        return origin->original_destination;
    upstream.port = origin->original_destination.port;
    return upstream;
}

/* The hook does not ask for these: it is somebody who wants to reach what is on our loopback as us.
 */
static bool is_excluded(struct worker *worker, const struct origin *origin)
{
    return origin->listener->direction == DP_OUTBOUND &&
           address_is_loopback(&origin->original_destination) &&
           table_match(tables_get(worker, DP_EXCLUDED), &origin->original_destination) !=
               MOSNHOOK_NO_RULE;
}

/* Begins with a cluster, which is referenced already. */
static void begin_within(struct choice *choice, struct worker *worker, struct cluster *cluster,
                         bool any)
{
    struct search search = {
        .since_ms = ejected_since(worker->timeouts, worker->loop.now_ms),
        .now_ms = worker->loop.now_ms,
        .random = &worker->tables->random,
        .any = any,
    };

    choice->cluster = cluster;
    choice->any = any;
    choice->attempts = 0;
    choice->postponed = 0;
    choice->first = cluster_pick_index(cluster, &search);
}

void choice_of_service(struct choice *choice, struct worker *worker, const struct service *service)
{
    struct tried_cluster clusters[SERVICE_LEVELS];
    struct pick pick = {.now_ms = worker->loop.now_ms, .random = &worker->tables->random};

    service_pick_clusters(service, &pick, clusters);
    for (uint32_t i = 0; i < SERVICE_LEVELS; i++)
        if (clusters[i].cluster)
            shared_reference(&clusters[i].cluster->shared);
    choice->next = clusters[1];
    if (clusters[0].cluster)
        begin_within(choice, worker, clusters[0].cluster, clusters[0].any);
}

enum dp_end choice_begin(struct choice *choice, struct worker *worker, const struct origin *origin)
{
    struct table *table = tables_get(worker, origin->listener->direction);
    struct mosnhook_address upstream = choice_default_upstream(origin);
    const struct route *route = NULL;

    memset(choice, 0, sizeof *choice);
    choice->route = table_match(table, &origin->original_destination);
    if (choice->route != MOSNHOOK_NO_RULE)
        route = &table->routes[choice->route];
    if (route) {
        choice->action = route->action;
        choice->protocol = route->protocol;
        choice->detect_ms = route->detect_ms;
        choice->undetected = route->undetected;
    }
    if (is_excluded(worker, origin)) {
        choice->action = DP_RELAY;
        return DP_END_EXCLUDED;
    }
    if (choice->action == DP_REFUSE)
        return DP_END_REFUSED_BY_ROUTE;
    if (route && route->cluster) {
        shared_reference(&route->cluster->shared);
        begin_within(choice, worker, route->cluster, true);
    } else if (routes_is_own(worker->routes, &upstream)) {
        return DP_END_LOOP;
    }
    return DP_END_NONE;
}

static void leave_endpoint(struct choice *choice)
{
    if (choice->endpoint)
        atomic_fetch_sub_explicit(&choice->endpoint->active, 1, memory_order_relaxed);
    choice->endpoint = NULL;
}

/* The next one that is not ejected; after all of those, the ejected ones. NULL: all were tried. */
static struct endpoint *next_of_cluster(struct choice *choice, uint64_t since_ms, uint64_t now_ms)
{
    const struct cluster *cluster = choice->cluster;
    struct endpoint *endpoint;
    uint32_t attempt;

    while (choice->attempts < cluster->count) {
        attempt = choice->attempts++;
        endpoint = cluster->endpoints[(choice->first + attempt) % cluster->count];
        if (!choice->any && !endpoint_is_available(endpoint, now_ms))
            continue;
        if (attempt >= MAX_POSTPONED || !endpoint_is_ejected(endpoint, since_ms))
            return endpoint;
        choice->postponed |= UINT64_C(1) << attempt;
    }
    if (!choice->postponed)
        return NULL;
    attempt = (uint32_t)__builtin_ctzll(choice->postponed);
    choice->postponed &= choice->postponed - 1;
    return cluster->endpoints[(choice->first + attempt) % cluster->count];
}

static struct endpoint *next_endpoint(struct choice *choice, struct worker *worker)
{
    uint64_t now_ms = worker->loop.now_ms, since_ms = ejected_since(worker->timeouts, now_ms);
    struct endpoint *endpoint = next_of_cluster(choice, since_ms, now_ms);
    struct tried_cluster next = choice->next;

    if (endpoint || !next.cluster)
        return endpoint;
    choice->next.cluster = NULL;
    shared_release(&choice->cluster->shared);
    begin_within(choice, worker, next.cluster, next.any);
    return next_of_cluster(choice, since_ms, now_ms);
}

bool choice_next(struct choice *choice, struct worker *worker, const struct origin *origin)
{
    leave_endpoint(choice);
    if (!choice->cluster) {
        if (!choice->fixed)
            choice->upstream = choice_default_upstream(origin);
        return choice->attempts++ == 0;
    }
    choice->endpoint = next_endpoint(choice, worker);
    if (!choice->endpoint)
        return false;
    atomic_fetch_add_explicit(&choice->endpoint->active, 1, memory_order_relaxed);
    choice->upstream = choice->endpoint->address;
    return true;
}

void choice_give_back(struct choice *choice)
{
    if (choice->cluster)
        cluster_give_back(choice->cluster);
}

void choice_release(struct choice *choice)
{
    leave_endpoint(choice);
    if (choice->cluster)
        shared_release(&choice->cluster->shared);
    if (choice->next.cluster)
        shared_release(&choice->next.cluster->shared);
    choice->cluster = choice->next.cluster = NULL;
}
