/* What health checks, which the control plane makes, say of endpoints: see dataplane.h. */
#include "api/plane.h"
#include "base/clock.h"

/* Whether that is new. */
static bool set(struct endpoint *endpoint, bool healthy, uint64_t now_ms)
{
    if (atomic_load_explicit(&endpoint->unhealthy, memory_order_relaxed) == !healthy)
        return false;
    if (healthy) /* it begins slowly, where the service says so */
        atomic_store_explicit(&endpoint->since_ms, now_ms, memory_order_relaxed);
    atomic_store_explicit(&endpoint->unhealthy, !healthy, memory_order_relaxed);
    return true;
}

void dp_set_health(struct dp *dp, const struct dp_health *health, size_t count)
{
    uint64_t now_ms = clock_ns(CLOCK_MONOTONIC) / NS_PER_MS;

    for (size_t i = 0; i < count; i++) {
        struct standing *standing = standings_find(&dp->directories.standings, health[i].service);
        struct endpoint *endpoint = endpoint_find(
            &dp->routes.registry.endpoints, service_scope(health[i].service), &health[i].address);

        if (standing && endpoint && set(endpoint, health[i].healthy, now_ms))
            service_changed(standing);
    }
}

size_t dp_outages(struct dp *dp, struct dp_outage *outages, size_t max)
{
    const struct directory *directory = dp->directories.newest;
    uint64_t now_ms = clock_ns(CLOCK_MONOTONIC) / NS_PER_MS;
    size_t count = 0;

    for (uint32_t i = 0; directory && i < directory->service_count; i++) {
        const struct service *service = directory->services[i];
        struct availability availability;

        if (atomic_load_explicit(&service->standing->changes, memory_order_relaxed) == 0)
            continue;
        availability = service_availability(service, now_ms);
        if (availability.available < availability.endpoints && count++ < max)
            outages[count - 1] = (struct dp_outage){
                .name = service->name.at,
                .name_size = service->name.size,
                .number = service->standing->number,
                .endpoints = availability.endpoints,
                .available = availability.available,
                .panic = availability.panic,
                .panic_share = service->policy.panic_share,
            };
    }
    return count;
}
