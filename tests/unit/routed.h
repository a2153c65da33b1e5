/* A worker with one route, for everything. For modules of upstream/ and above. */
#ifndef UNIT_ROUTED_H
#define UNIT_ROUTED_H

#include <unistd.h>

#include "net/budget.h"
#include "net/foreign.h"
#include "unit.h"
#include "upstream/routes.h"

enum { BUDGET = 1000 };

struct routed_worker {
    struct worker worker;
    struct timeouts timeouts;
    struct budget budget;
    struct routes routes;
    struct tables tables;
    struct foreign *foreign;
    int descriptors; /* that were open before */
};

/* Matches every IPv4 and IPv6 address; or none. */
static inline struct table *table_to(struct registry *registry, uint32_t scope,
                                     const struct dp_route *route,
                                     const struct mosnhook_address *endpoints)
{
    const struct {
        struct mosnhook_rules rules;
        struct mosnhook_boundary boundary;
        struct mosnhook_prefix prefix;
        struct mosnhook_segment segment;
    } all = {
        .rules = {sizeof all, 1, 1, 1},
        .prefix = {.parent = -1, .segment_count = 1},
        .segment = {.last_port = UINT16_MAX},
    };
    static const struct mosnhook_rules none = {.size = sizeof none};

    return table_create(registry, scope, route ? &all.rules : &none, route, route ? 1 : 0,
                        endpoints, route ? route->endpoint_count : 0, NULL);
}

/* NULL: there is no route. */
static inline void set_route(struct routed_worker *routed, uint32_t which,
                             const struct dp_route *route, const struct mosnhook_address *endpoints)
{
    struct table *table = table_to(&routed->routes.registry, which, route, endpoints);

    assert_non_null(table);
    tables_offer(&routed->tables, which, table);
    table_drop(routed->routes.tables[which]);
    routed->routes.tables[which] = table;
}

static inline void routed_open(struct routed_worker *routed)
{
    *routed = (struct routed_worker){.descriptors = open_descriptors()};
    assert_int_equal(loop_open(&routed->worker.loop), 0);
    routed->foreign = foreign_create();
    routed->budget = (struct budget){.most = BUDGET, .foreign = routed->foreign};
    routed->timeouts = (struct timeouts){
        .connect_ms = 30000, .idle_ms = 60000, .ejection_ms = 1000, .flush_ms = 60000};
    routed->worker.diag = -1;
    routes_init(&routed->routes, -1);
    tables_init(&routed->tables, 0);
    routed->worker.timeouts = &routed->timeouts;
    routed->worker.budget = &routed->budget;
    routed->worker.foreign = routed->foreign;
    routed->worker.routes = &routed->routes;
    routed->worker.tables = &routed->tables;
    for (uint32_t which = 0; which < TABLES; which++)
        set_route(routed, which, NULL, NULL);
}

/* Nothing may be left: the assertions of what it closes say so. */
static inline void routed_close(struct routed_worker *routed)
{
    assert_int_equal(budget_used(&routed->budget), 0);
    assert_int_equal(counter_read(&routed->worker.counters.buffers), 0);
    tables_close(&routed->tables);
    routes_close(&routed->routes);
    loop_close(&routed->worker.loop);
    foreign_release(routed->foreign);
    if (routed->worker.diag >= 0)
        close(routed->worker.diag);
    assert_int_equal(open_descriptors(), routed->descriptors);
}

#endif
