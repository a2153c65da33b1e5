/* The route tables: the control thread sets them, workers look destinations up in them. */
#ifndef PYSIDECAR_UPSTREAM_ROUTES_H
#define PYSIDECAR_UPSTREAM_ROUTES_H

#include "loop/worker.h"
#include "upstream/table.h"

enum {
    DIRECTIONS = 2, /* enum dp_direction */
    TABLES = 3,     /* one a direction, and DP_EXCLUDED */
};

/* The control thread's. */
struct routes {
    struct registry registry;
    struct table *tables[TABLES];
    struct mosnhook_address *own; /* see dp_set_own_addresses; set before the workers run */
    size_t own_count;
};

/* A worker's. */
struct tables {
    _Atomic(struct table *) newest[TABLES]; /* offered, and not adopted yet */
    struct table *current[TABLES];
    uint64_t random; /* see base/random.h */
};

void routes_init(struct routes *routes, int event);
/* No worker may have a table any more. */
void routes_close(struct routes *routes);
/* 0 or -errno. */
int routes_set_own(struct routes *routes, const struct mosnhook_address *own, size_t count);
/* Whether it is a listener of ours: a connection to it would loop. */
bool routes_is_own(const struct routes *routes, const struct mosnhook_address *address);

void tables_init(struct tables *tables, unsigned index);
void tables_close(struct tables *tables);
/* Gives the worker a new table, with one more reference. From any thread. */
void tables_offer(struct tables *tables, uint32_t which, struct table *table);
/* The newest table: a change holds for every lookup that begins after it. `which`: see
 * dp_set_routes. */
struct table *tables_get(struct tables *tables, uint32_t which);

/* The time after which a failed connect means that the endpoint is still ejected. */
uint64_t ejected_since(const struct timeouts *timeouts, uint64_t now_ms);

#endif
