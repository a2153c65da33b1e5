/* What the control thread reads of requests, services and endpoints: see dataplane.h. */
#include <stdlib.h>
#include <string.h>

#include "api/plane.h"
#include "base/clock.h"

/* ---- requests ---- */

typedef int compare(const void *one, const void *other);

static int by_end(const void *one, const void *other)
{
    const struct dp_request *a = one, *b = other;
    uint64_t a_ended = a->began_ns + a->duration_ns, b_ended = b->began_ns + b->duration_ns;

    return (a_ended < b_ended) - (a_ended > b_ended);
}

static int by_duration(const void *one, const void *other)
{
    const struct dp_request *a = one, *b = other;

    return (a->duration_ns < b->duration_ns) - (a->duration_ns > b->duration_ns);
}

/* Stores the first of them, and frees all. */
static size_t give_first(struct dp_request *found, size_t count, compare *order,
                         struct dp_request *requests, size_t max)
{
    qsort(found, count, sizeof *found, order);
    if (count > max)
        count = max;
    memcpy(requests, found, count * sizeof *found);
    free(found);
    return count;
}

static size_t read_recent(struct dp *dp, bool failed, struct dp_request *requests, size_t max)
{
    struct dp_request *found;
    size_t of_each = max < RECENT_REQUESTS ? max : RECENT_REQUESTS, count = 0;

    found = calloc(dp->worker_count * of_each + 1, sizeof *found);
    if (!found)
        return 0;
    for (uint32_t i = 0; i < dp->worker_count; i++)
        count += requests_recent(&dp->threads[i].inbox.requests, failed, found + count, of_each);
    return give_first(found, count, by_end, requests, max);
}

size_t dp_recent_requests(struct dp *dp, struct dp_request *requests, size_t max)
{
    return read_recent(dp, false, requests, max);
}

size_t dp_failed_requests(struct dp *dp, struct dp_request *requests, size_t max)
{
    return read_recent(dp, true, requests, max);
}

size_t dp_slowest_requests(struct dp *dp, struct dp_request *requests, size_t max)
{
    uint64_t since_ns = clock_ns(CLOCK_REALTIME) - SLOW_FOR_NS;
    struct dp_request *found;
    size_t count = 0;

    found = calloc(dp->worker_count * SLOW_REQUESTS, sizeof *found);
    if (!found)
        return 0;
    for (uint32_t i = 0; i < dp->worker_count; i++)
        count += requests_slowest(&dp->threads[i].inbox.requests, since_ns, found + count);
    return give_first(found, count, by_duration, requests, max);
}

size_t dp_take_spans(struct dp *dp, struct dp_span *spans, size_t max, uint64_t *missed)
{
    size_t taken = 0;

    for (uint32_t i = 0; i < dp->worker_count && taken < max; i++)
        taken += ring_take(&dp->threads[i].inbox.spans, spans + taken, max - taken, missed);
    return taken;
}

void dp_read_unserved(struct dp *dp, struct dp_tally *tally)
{
    memset(tally, 0, sizeof *tally);
    for (uint32_t i = 0; i < dp->worker_count; i++)
        tally_add(&dp->threads[i].inbox.requests.unserved, tally);
}

/* ---- services and their endpoints ---- */

enum { MOST_LOOKED_AT = 2048 }; /* in one call: less than a millisecond */

static void add_all(const struct dp *dp, const struct tally *tallies, struct dp_tally *sum)
{
    for (uint32_t i = 0; tallies && i < dp->worker_count; i++)
        tally_add(&tallies[i], sum);
}

/* Whether any request has got there, or a connection for one. */
static bool is_used(const struct dp_tally *tally)
{
    uint64_t sum = tally->active + tally->pending + tally->connections;

    for (int i = 0; i < DP_STATUS_CLASSES; i++)
        sum += tally->statuses[i];
    return sum > 0;
}

static uint32_t reached_bounds(const struct service *service)
{
    struct standing *standing = service->standing;
    const struct dp_resilience *resilience = &service->resilience;
    uint32_t reached = 0;

    if (atomic_load_explicit(&standing->connections, memory_order_relaxed) >= service->connections)
        reached |= 1u << DP_BOUND_CONNECTIONS;
    if (service->pending > 0 &&
        atomic_load_explicit(&standing->pending, memory_order_relaxed) >= service->pending)
        reached |= 1u << DP_BOUND_PENDING;
    if (resilience->requests > 0 &&
        atomic_load_explicit(&standing->load.requests, memory_order_relaxed) >=
            resilience->requests)
        reached |= 1u << DP_BOUND_REQUESTS;
    if (resilience->rate_requests > 0 &&
        !load_has_token(&standing->load, resilience, clock_ns(CLOCK_MONOTONIC)))
        reached |= 1u << DP_BOUND_RATE;
    return reached;
}

static void read_service(const struct dp *dp, const struct service *service,
                         struct dp_service_sums *sums)
{
    struct availability availability;

    memset(sums, 0, sizeof *sums);
    sums->number = service->standing->number;
    sums->protocol = service->protocol;
    sums->role = service->role;
    sums->reached = reached_bounds(service);
    sums->retries = atomic_load_explicit(&service->standing->load.retries, memory_order_relaxed);
    sums->name = service->name.at;
    sums->name_size = service->name.size;
    availability = service_availability(service, clock_ns(CLOCK_MONOTONIC) / NS_PER_MS);
    sums->endpoints = availability.endpoints;
    sums->available = availability.available;
    sums->panic = availability.panic;
    add_all(dp, service->standing->tallies, &sums->tally);
}

size_t dp_read_services(struct dp *dp, struct dp_place *place, struct dp_service_sums *services,
                        size_t max)
{
    const struct directory *directory = dp->directories.newest;
    uint32_t count = directory ? directory->service_count : 0;
    size_t stored = 0;

    for (uint32_t left = MOST_LOOKED_AT; place->service < count && stored < max && left > 0;
         left--) {
        read_service(dp, directory->services[place->service++], &services[stored]);
        stored += !place->only_used || is_used(&services[stored].tally);
    }
    place->ended = place->service >= count;
    return stored;
}

static void read_endpoint(const struct dp *dp, const struct service *service, uint32_t index,
                          struct dp_endpoint_sums *sums)
{
    struct endpoint *endpoint = service_endpoint(service, index);
    uint64_t now_ms = clock_ns(CLOCK_MONOTONIC) / NS_PER_MS, until_ms;

    memset(sums, 0, sizeof *sums);
    sums->service = service->standing->number;
    sums->address = endpoint->address;
    sums->weight = service_weight(service, index);
    sums->other_zone = service->levels[0] && index >= service->levels[0]->count;
    sums->unhealthy = atomic_load_explicit(&endpoint->unhealthy, memory_order_relaxed);
    until_ms = atomic_load_explicit(&endpoint->ejected_until_ms, memory_order_relaxed);
    if (until_ms > now_ms)
        sums->ejected_ms = until_ms - now_ms;
    sums->ejected = endpoint_is_ejected(endpoint, ejected_since(&dp->timeouts, now_ms));
    add_all(dp, endpoint_tallies(endpoint), &sums->tally);
}

size_t dp_read_endpoints(struct dp *dp, struct dp_place *place, struct dp_endpoint_sums *endpoints,
                         size_t max)
{
    const struct directory *directory = dp->directories.newest;
    uint32_t count = directory ? directory->service_count : 0;
    size_t stored = 0;

    for (uint32_t left = MOST_LOOKED_AT; place->service < count && stored < max && left > 0;
         left--) {
        const struct service *service = directory->services[place->service];
        struct dp_endpoint_sums *sums = &endpoints[stored];

        if (place->endpoint >= service_endpoint_count(service)) {
            place->service++;
            place->endpoint = 0;
            continue;
        }
        read_endpoint(dp, service, place->endpoint++, sums);
        stored += !place->only_used || sums->ejected || sums->unhealthy || sums->ejected_ms > 0 ||
                  is_used(&sums->tally);
    }
    place->ended = place->service >= count;
    return stored;
}
