/* The endpoints of a route or a service, and how one of them is picked. */
#ifndef PYSIDECAR_UPSTREAM_CLUSTER_H
#define PYSIDECAR_UPSTREAM_CLUSTER_H

#include <stddef.h>
#include <stdint.h>

#include "base/terms.h"
#include "upstream/endpoint.h"
#include "upstream/maglev.h"
#include "upstream/shared.h"
#include "upstream/weighing.h"

/* What outlives route tables. The control thread's. */
struct registry {
    struct keeper keeper; /* of tables and clusters */
    struct map endpoints, clusters;
};

/* Immutable but for its turn. Referenced by tables and services, and by connections that use an
 * endpoint. */
struct cluster {
    /* First what a pick needs: what all workers write to is in one cache line then. */
    struct shared shared;
    atomic_uint turn; /* round robin */
    uint32_t count;
    uint32_t balance; /* enum dp_balance */
    uint32_t scope;
    uint64_t key;              /* see struct dp_route; of a service, its number */
    struct weighing *weighing; /* NULL: all weigh the same, and there is no ring */
    struct maglev *maglev;     /* NULL: it is not balanced by that */
    /* See cluster_available. Whichever worker finds it out of date counts anew. */
    _Atomic uint64_t counted; /* its `changes`, and in the lower half how many are available */
    _Atomic uint64_t counted_until_ms;
    struct map_entry entry;
    struct endpoint *endpoints[]; /* as the route names them, one perhaps several times */
};

/* What a cluster is made of. */
struct cluster_plan {
    uint64_t key;
    uint32_t scope; /* see endpoint_intern */
    uint32_t balance;
    uint32_t count;
    /* One of both: */
    const struct mosnhook_address *addresses;
    const struct dp_endpoint *weighted;
};

void registry_init(struct registry *registry, int event);
/* Nothing may be left of what others reference. */
void registry_close(struct registry *registry);

/* The cluster with that content, with one more reference: the same as before if nothing has
 * changed. One that changed goes on with its turns. NULL when out of memory. */
struct cluster *cluster_intern(struct registry *registry, const struct cluster_plan *plan);

/* Whether it is what cluster_intern would find. */
bool cluster_is(const struct cluster *cluster, const struct cluster_plan *plan);

/* The index of the endpoint to try first: one that is not ejected, if there is one. It takes a few
 * tries, however many endpoints there are; more only where nearly all of them are ejected. `random`
 * is the state of the thread's random numbers. */
uint32_t cluster_pick(struct cluster *cluster, uint64_t since_ms, uint64_t *random);

/* The same for a request. */
struct search {
    uint64_t since_ms;
    uint64_t now_ms; /* the loop's */
    uint64_t *random;
    uint64_t hash; /* for DP_RING_HASH, DP_MAGLEV */
    /* Endpoints that are passed over, too. */
    struct endpoint *const *tried;
    uint32_t tried_count;
    uint32_t slow_start_ms; /* in which the share of an endpoint grows; 0: at once */
    bool any;               /* also those that are not available */
};

/* As cluster_pick. It may be one that is not available, where none is. */
uint32_t cluster_pick_index(struct cluster *cluster, const struct search *search);

/* One that was not tried: ejected ones are better than none. NULL: all were, or none is available.
 */
struct endpoint *cluster_pick_untried(struct cluster *cluster, const struct search *search);
/* The same, but no ejected one. */
struct endpoint *cluster_pick_sound(struct cluster *cluster, const struct search *search);

/* How many endpoints are available. `changes`: a number that is another one after each change of
 * that, 0 where there was none; ejections that are over need none. */
uint32_t cluster_available(struct cluster *cluster, uint32_t changes, uint64_t now_ms);

/* After cluster_pick: its turn was not used. */
void cluster_give_back(struct cluster *cluster);

#endif
