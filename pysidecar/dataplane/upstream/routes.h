/* The route tables: as the control thread sets them, and as a worker finds them. */
#ifndef PYSIDECAR_UPSTREAM_ROUTES_H
#define PYSIDECAR_UPSTREAM_ROUTES_H

#include "loop/worker.h"
#include "upstream/table.h"

enum {
    TABLES = DP_DIRECTIONS + 1, /* theirs, and DP_EXCLUDED */
};

/* The control thread's. */
struct routes {
    struct registry registry;
    struct table *tables[TABLES];
    struct mosnhook_address *own; /* see dp_set_own_addresses; before the workers run */
    size_t own_count;
};

/* A worker's. */
struct tables {
    _Atomic(struct table *) newest[TABLES]; /* that it has not adopted yet */
    struct table *current[TABLES];
    uint64_t random; /* see base/random.h */
};

void routes_init(struct routes *routes, int event);
/* When no worker has a table any more. */
void routes_close(struct routes *routes);
/* 0 or -errno. */
int routes_set_own(struct routes *routes, const struct mosnhook_address *own, size_t count);
/* Of a connection that goes there a loop would become. */
bool routes_is_own(const struct routes *routes, const struct mosnhook_address *address);

void tables_init(struct tables *tables, unsigned index);
void tables_close(struct tables *tables);
/* Gives the worker, whose thread it need not be, a new one: with one reference more. */
void tables_offer(struct tables *tables, uint32_t which, struct table *table);
/* The worker's newest table: a change holds for every lookup that begins after it. `which`: see
 * dp_set_routes. */
struct table *tables_get(struct worker *worker, uint32_t which);

/* Endpoints whose last connect failed after that moment are ejected now. */
uint64_t ejected_since(const struct timeouts *timeouts, uint64_t now_ms);

#endif
