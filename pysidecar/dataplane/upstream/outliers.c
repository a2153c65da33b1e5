#include "upstream/outliers.h"

#include "upstream/latency.h"

enum {
    LONGEST_MS = 300 * 1000,
    FORGET_MS = 10 * 1000, /* without an ejection, for one of those before */
    FULL_MS = 1000,        /* from one look at all endpoints to the next, where no more can be */
};

static bool is_ejected(const struct endpoint *endpoint, uint64_t now_ms)
{
    return atomic_load_explicit(&endpoint->ejected_until_ms, memory_order_relaxed) > now_ms;
}

/* ---- whether there may be one more ---- */

struct ejected {
    uint32_t endpoints, count;
    uint64_t first_ms; /* when the first one is not any more */
};

static struct ejected count_ejected(const struct service *service, uint64_t now_ms)
{
    struct ejected ejected = {service_endpoint_count(service), 0, now_ms + FULL_MS};

    for (uint32_t i = 0; i < ejected.endpoints; i++) {
        uint64_t until_ms = atomic_load_explicit(&service_endpoint(service, i)->ejected_until_ms,
                                                 memory_order_relaxed);

        if (until_ms <= now_ms)
            continue;
        ejected.count++;
        if (until_ms < ejected.first_ms)
            ejected.first_ms = until_ms;
    }
    return ejected;
}

/* By one worker at a time. */
static bool may_eject(const struct service *service, uint64_t now_ms)
{
    struct standing *standing = service->standing;
    struct ejected ejected;

    if (now_ms < atomic_load_explicit(&standing->full_until_ms, memory_order_relaxed))
        return false;
    ejected = count_ejected(service, now_ms);
    if (ejected.count == 0 || (ejected.count + 1) * (uint64_t)DP_SHARES <=
                                  (uint64_t)service->policy.outlier_share * ejected.endpoints)
        return true;
    atomic_store_explicit(&standing->full_until_ms, ejected.first_ms, memory_order_relaxed);
    return false;
}

/* ---- for how long ---- */

/* How often it was lately, with this time. */
static uint32_t count_ejections(const struct endpoint *endpoint, uint64_t now_ms)
{
    uint32_t before = atomic_load_explicit(&endpoint->ejections, memory_order_relaxed);
    uint64_t until_ms = atomic_load_explicit(&endpoint->ejected_until_ms, memory_order_relaxed);
    uint64_t forgotten = (now_ms - until_ms) / FORGET_MS;

    return (forgotten < before ? before - (uint32_t)forgotten : 0) + 1;
}

static uint64_t ejection_ms(const struct service *service, uint32_t ejections)
{
    uint64_t base_ms = service->policy.outlier_ms;
    uint64_t most_ms = base_ms > LONGEST_MS ? base_ms : LONGEST_MS;

    return base_ms * ejections < most_ms ? base_ms * ejections : most_ms;
}

static bool eject(const struct service *service, struct endpoint *endpoint, uint64_t now_ms)
{
    uint32_t ejections;

    if (is_ejected(endpoint, now_ms) || !may_eject(service, now_ms))
        return false;
    ejections = count_ejections(endpoint, now_ms);
    atomic_store_explicit(&endpoint->ejections, ejections, memory_order_relaxed);
    atomic_store_explicit(&endpoint->errors, 0, memory_order_relaxed);
    atomic_store_explicit(&endpoint->ejected_until_ms, now_ms + ejection_ms(service, ejections),
                          memory_order_relaxed);
    service_changed(service->standing);
    return true;
}

/* ---- what became of requests ---- */

static bool note_failure(const struct service *service, struct endpoint *endpoint, uint64_t now_ms)
{
    struct standing *standing = service->standing;
    uint32_t limit = service->policy.outlier_errors;
    bool ejected;

    if (limit == 0 || is_ejected(endpoint, now_ms) ||
        atomic_fetch_add_explicit(&endpoint->errors, 1, memory_order_relaxed) + 1 < limit ||
        atomic_exchange_explicit(&standing->ejecting, true, memory_order_acquire))
        return false;
    ejected = eject(service, endpoint, now_ms);
    atomic_store_explicit(&standing->ejecting, false, memory_order_release);
    return ejected;
}

bool outliers_note(const struct service *service, struct endpoint *endpoint,
                   const struct attempt *attempt, uint64_t now_ms)
{
    if (!service || !endpoint)
        return false;
    if (service->cluster && service->cluster->balance == DP_PEAK_EWMA && attempt->latency_ns > 0)
        latency_add(endpoint, attempt->latency_ns, attempt->failed, now_ms);
    if (attempt->failed)
        return note_failure(service, endpoint, now_ms);
    if (atomic_load_explicit(&endpoint->errors, memory_order_relaxed) > 0)
        atomic_store_explicit(&endpoint->errors, 0, memory_order_relaxed);
    return false;
}
