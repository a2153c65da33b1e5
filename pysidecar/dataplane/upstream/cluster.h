/* The endpoints of a route, and how one of them is picked. */
#ifndef PYSIDECAR_UPSTREAM_CLUSTER_H
#define PYSIDECAR_UPSTREAM_CLUSTER_H

#include <stddef.h>
#include <stdint.h>

#include "base/terms.h"
#include "upstream/endpoint.h"
#include "upstream/shared.h"

/* What outlives route tables. The control thread's. */
struct registry {
    struct keeper keeper; /* of tables and clusters */
    struct map endpoints, clusters;
};

/* Immutable but for its turn. Referenced by tables, and by connections that use an endpoint. */
struct cluster {
    /* First what a pick needs: what all workers write to is in one cache line then. */
    struct shared shared;
    atomic_uint turn; /* round robin */
    uint32_t count;
    uint32_t balance; /* enum dp_balance */
    uint32_t scope;
    uint64_t key; /* see struct dp_route */
    struct map_entry entry;
    /* As the route names them, one perhaps several times. Weights will stand beside them: they are
     * the route's, not the endpoint's. */
    struct endpoint *endpoints[];
};

void registry_init(struct registry *registry, int event);
/* Nothing may be left of what others reference. */
void registry_close(struct registry *registry);

/* The cluster of a route, with one more reference: the same as in the table before if nothing has
 * changed. One that changed goes on with its turns. NULL when out of memory. `scope`: see
 * endpoint_intern. */
struct cluster *cluster_intern(struct registry *registry, uint32_t scope,
                               const struct dp_route *route,
                               const struct mosnhook_address *endpoints);

/* Whether it is what cluster_intern would find. */
bool cluster_is(const struct cluster *cluster, uint32_t scope, const struct dp_route *route,
                const struct mosnhook_address *endpoints);

/* The index of the endpoint to try first: one that is not ejected, if there is one. It takes a few
 * tries, however many endpoints there are; more only where nearly all of them are ejected. `random`
 * is the state of the thread's random numbers. */
uint32_t cluster_pick(struct cluster *cluster, uint64_t since_ms, uint64_t *random);
/* After cluster_pick: its turn was not used. */
void cluster_give_back(struct cluster *cluster);

#endif
