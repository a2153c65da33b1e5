/* A service: endpoints with weights, how one is picked for a request, and its limits.
 *
 * Immutable but for `generation`: a service that changes is another struct with the same number.
 * Its endpoints are interned in a scope of its own (see endpoint_intern), so that what is known of
 * them outlives the change, and its standing outlives all of these structs: that of a configured
 * service for as long as we run, that of one that was found as long as there is one. */
#ifndef PYSIDECAR_UPSTREAM_SERVICE_H
#define PYSIDECAR_UPSTREAM_SERVICE_H

#include <stdatomic.h>

#include "base/slab.h"
#include "base/text.h"
#include "upstream/cluster.h"
#include "upstream/resilience.h"
#include "upstream/tally.h"

/* What is counted of a service. */
struct standing {
    struct map_entry entry;
    struct standings *all;
    struct standing *next, **previous; /* in no order */
    /* The control thread's, like the next ones; NULL: there is none now. */
    struct service *newest;
    uint32_t services; /* structs that have it */
    uint64_t listed;   /* by whoever makes a table: the last one that names it */
    atomic_uint place; /* of its service in the newest table, see router_successor */
    uint32_t number;
    char name[DP_SERVICE_BYTES]; /* NUL-padded; cut where it is too long */
    atomic_uint connections;     /* upstream connections, of all workers */
    atomic_uint pending;         /* requests that wait for one, of all workers */
    atomic_uint starved;         /* pools that have none and need one, of all workers */
    struct load load;            /* where it is bounded */
    /* Goes up when an endpoint becomes available, or is not any more: see cluster_available. */
    atomic_uint changes;
    /* See upstream/outliers.c: */
    atomic_bool ejecting;           /* a worker is about to */
    _Atomic uint64_t full_until_ms; /* no further endpoint can be ejected until then */
    struct tally *tallies;          /* by worker */
};

/* Of all services that there are, and of those that were configured at some time. The control
 * thread's. */
struct standings {
    struct map map;
    struct standing *first;
    uint32_t workers;
    struct slab tallies; /* of standings: one for each worker together */
};

enum { SERVICE_LEVELS = 2 }; /* of endpoints, see struct dp_endpoint */

struct service {
    struct shared shared;
    struct standing *standing;
    _Atomic uint64_t generation; /* the newest table that names it, see router_generation */
    /* Its endpoints, by level; NULL: there is none. */
    struct cluster *levels[SERVICE_LEVELS];
    struct cluster *cluster; /* the first of these; NULL: it has no endpoint */
    struct dp_endpoint_policy policy;
    struct text name, hash_by;
    enum dp_protocol protocol;
    enum dp_role role;
    /* as in struct dp_service */
    uint32_t timeout_ms, silent_ms, idle_ms, connections, pending, await_ms;
    struct dp_resilience resilience; /* zeros: none; `mirror` is not its own, see router.h */
    char texts[];
};

/* What a service is made of. */
struct service_plan {
    const struct dp_service *settings;
    struct text name, hash_by;
    const struct dp_endpoint *endpoints;    /* of settings->endpoint_count */
    const struct dp_resilience *resilience; /* NULL: none */
};

/* What is to be considered in picking, and what came of it. */
struct pick {
    uint64_t since_ms; /* see ejected_since */
    uint64_t now_ms;   /* the loop's */
    uint64_t *random;
    uint64_t hash; /* of what DP_RING_HASH and DP_MAGLEV go by */
    struct endpoint *const *tried;
    uint32_t tried_count;
    uint32_t flags; /* 1 << enum dp_flag each: how it was picked, or why there is none */
};

/* The endpoint for a request. It is available, unless so few of the service's are that it is panic:
 * then it is any. Those that could not be connected lately are passed over while there are others,
 * and those that were tried are left out. NULL: there is none. */
struct endpoint *service_pick(const struct service *service, struct pick *pick);

/* The same for a connection, which goes through the endpoints of a cluster, and then of the next.
 */
struct tried_cluster {
    struct cluster *cluster; /* NULL: there is no further one */
    bool any;                /* also endpoints that are not available */
};
void service_pick_clusters(const struct service *service, struct pick *pick,
                           struct tried_cluster clusters[SERVICE_LEVELS]);

/* Its endpoints, of all levels. */
uint32_t service_endpoint_count(const struct service *service);
struct endpoint *service_endpoint(const struct service *service, uint32_t index);
/* 1 where all weigh the same. */
uint32_t service_weight(const struct service *service, uint32_t index);

/* How many there are, and of these the available ones. */
struct availability {
    uint32_t endpoints, available;
    bool panic;
};
struct availability service_availability(const struct service *service, uint64_t now_ms);

/* An endpoint of it has become available, or is not any more. In any thread. */
void service_changed(struct standing *standing);

/* The scope of its endpoints, see endpoint_intern. */
uint32_t service_scope(uint32_t number);

/* The following are for the control thread. */

/* The service with that content, with one more reference: the same as before if nothing has
 * changed. NULL with errno set: when out of memory, or EINVAL where the number had another name. */
struct service *service_intern(struct registry *registry, struct standings *standings,
                               const struct service_plan *plan);
/* NULL: there is no service with this number. */
struct standing *standings_find(const struct standings *standings, uint32_t number);
void standings_init(struct standings *standings, uint32_t workers);
/* When there is no service any more. */
void standings_close(struct standings *standings);

#endif
