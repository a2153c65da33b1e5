/* The route table: from an original destination to a route. */
#ifndef PYSIDECAR_UPSTREAM_TABLE_H
#define PYSIDECAR_UPSTREAM_TABLE_H

#include "upstream/cluster.h"

struct route {
    enum dp_action action;
    uint32_t protocol, detect_ms, undetected; /* see struct dp_route */
    struct cluster *cluster;                  /* NULL: the original destination */
};

/* Immutable. Referenced by workers. */
struct table {
    struct shared shared;
    struct mosnhook_rules *rules;
    size_t route_count;
    struct route routes[];
};

/* A table with one reference, or NULL with errno set. */
struct table *table_create(struct registry *registry, uint32_t scope,
                           const struct mosnhook_rules *rules, const struct dp_route *routes,
                           size_t route_count, const struct mosnhook_address *endpoints,
                           size_t endpoint_count, const struct table *before);
void table_release(struct table *table); /* in any thread; NULL is allowed */
void table_drop(struct table *table);    /* the same in the control thread */
/* The index of the first route that matches, or MOSNHOOK_NO_RULE. */
uint32_t table_match(const struct table *table, const struct mosnhook_address *destination);

#endif
