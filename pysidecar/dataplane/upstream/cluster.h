/* The endpoints of a route, and picking one of them. */
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

/* Immutable but for its turn. Tables reference it, and so do connections to its endpoints. */
struct cluster {
    /* What a pick needs comes first: one cache line has all that workers write. */
    struct shared shared;
    atomic_uint turn; /* round robin */
    uint32_t count;
    uint32_t balance; /* enum dp_balance */
    uint32_t scope;
    uint64_t key; /* see struct dp_route */
    struct map_entry entry;
    /* As the route names them, perhaps one several times. Weights will stand beside them, as they
     * are the route's and not the endpoint's. */
    struct endpoint *endpoints[];
};

void registry_init(struct registry *registry, int event);
/* Nobody may reference a cluster or a table any more. */
void registry_close(struct registry *registry);

/* The cluster of a route, with one more reference: that of the table before if nothing has changed,
 * else a new one that goes on with its turns. NULL when out of memory. `scope`: see
 * endpoint_intern. */
struct cluster *cluster_intern(struct registry *registry, uint32_t scope,
                               const struct dp_route *route,
                               const struct mosnhook_address *endpoints);

/* Whether cluster_intern would find this one. */
bool cluster_is(const struct cluster *cluster, uint32_t scope, const struct dp_route *route,
                const struct mosnhook_address *endpoints);

/* The index of the endpoint to try first, which is not ejected unless all are. Takes a few tries
 * however many endpoints there are, and more only where nearly all are ejected. `random` is the
 * thread's random state. */
uint32_t cluster_pick(struct cluster *cluster, uint64_t since_ms, uint64_t *random);
/* Gives back the turn of a cluster_pick that was not used. */
void cluster_give_back(struct cluster *cluster);

#endif
