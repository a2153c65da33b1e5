/* Where a connection goes: its route, and the route's endpoints, one after the other. */
#ifndef PYSIDECAR_UPSTREAM_CHOICE_H
#define PYSIDECAR_UPSTREAM_CHOICE_H

#include <stdbool.h>

#include "loop/worker.h"
#include "upstream/cluster.h"
#include "upstream/origin.h"

struct choice {
    uint32_t route;                   /* its index, or MOSNHOOK_NO_RULE */
    enum dp_action action;            /* the route's */
    struct cluster *cluster;          /* NULL: goes to the original destination */
    struct endpoint *endpoint;        /* being tried, or connected */
    struct mosnhook_address upstream; /* the address that is tried */
    uint32_t first,
        attempts; /* first: the index in the cluster; attempts: endpoints tried or postponed */
    uint64_t postponed; /* a bit for each attempt whose endpoint was ejected */
};

/* Finds the route. DP_END_NONE, or why the connection is refused. */
enum dp_end choice_begin(struct choice *choice, struct worker *worker, const struct origin *origin);
/* Goes on to the next endpoint; false when all were tried. Ejected ones come last. */
bool choice_next(struct choice *choice, struct worker *worker, const struct origin *origin);
/* Gives an unused turn back to the cluster. */
void choice_give_back(struct choice *choice);
/* The connection to the endpoint is over: releases endpoint and cluster. */
void choice_release(struct choice *choice);

#endif
