#include "upstream/routes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/sockaddr.h"

void routes_init(struct routes *routes, int event)
{
    registry_init(&routes->registry, event);
}

void routes_close(struct routes *routes)
{
    for (int which = 0; which < TABLES; which++)
        table_drop(routes->tables[which]);
    registry_close(&routes->registry);
    free(routes->own);
}

int routes_set_own(struct routes *routes, const struct mosnhook_address *own, size_t count)
{
    struct mosnhook_address *copy = calloc(count ? count : 1, sizeof *copy);

    if (!copy)
        return -ENOMEM;
    if (count)
        memcpy(copy, own, count * sizeof *copy);
    free(routes->own);
    routes->own = copy;
    routes->own_count = count;
    return 0;
}

bool routes_is_own(const struct routes *routes, const struct mosnhook_address *address)
{
    for (size_t i = 0; i < routes->own_count; i++) {
        const struct mosnhook_address *own = &routes->own[i];

        if (own->port == address->port &&
            (address_equal(own, address) ||
             (address_is_unspecified(own) && address_is_loopback(address))))
            return true;
    }
    return false;
}

void tables_init(struct tables *tables, unsigned index)
{
    tables->random = clock_ns(CLOCK_MONOTONIC) + ((uint64_t)index << 48);
}

void tables_close(struct tables *tables)
{
    for (int which = 0; which < TABLES; which++) {
        table_drop(tables->current[which]);
        table_drop(atomic_load(&tables->newest[which]));
    }
}

void tables_offer(struct tables *tables, uint32_t which, struct table *table)
{
    shared_reference(&table->shared);
    table_drop(atomic_exchange_explicit(&tables->newest[which], table, memory_order_acq_rel));
}

struct table *tables_get(struct worker *worker, uint32_t which)
{
    struct tables *tables = worker->tables;
    struct table *table;

    if (!atomic_load_explicit(&tables->newest[which], memory_order_relaxed))
        return tables->current[which];
    table = atomic_exchange_explicit(&tables->newest[which], NULL, memory_order_acq_rel);
    if (table) {
        table_release(tables->current[which]);
        tables->current[which] = table;
        trace(worker, 0, table_adopted, which, table->route_count);
    }
    return tables->current[which];
}

uint64_t ejected_since(const struct timeouts *timeouts, uint64_t now_ms)
{
    uint32_t ejection_ms = timeout_of(&timeouts->ejection_ms);

    if (ejection_ms == 0)
        return UINT64_MAX;
    return now_ms > ejection_ms ? now_ms - ejection_ms : 0;
}
