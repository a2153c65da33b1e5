/* A service: endpoints with weights, how one is picked for a request, and its limits.
 *
 * Immutable: a service that changes is another struct with the same number. Its endpoints are
 * interned in a scope of its own (see endpoint_intern), so that what is known of them outlives the
 * change, and its standing outlives all of these structs: that of a configured service for as long
 * as we run, that of one that was found as long as there is one. */
#ifndef PYSIDECAR_UPSTREAM_SERVICE_H
#define PYSIDECAR_UPSTREAM_SERVICE_H

#include <stdatomic.h>

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
    uint32_t number;
    char name[DP_SERVICE_BYTES]; /* NUL-padded; cut where it is too long */
    atomic_uint connections;     /* upstream connections, of all workers */
    atomic_uint pending;         /* requests that wait for one, of all workers */
    atomic_uint starved;         /* pools that have none and need one, of all workers */
    struct load load;            /* where it is bounded */
    struct tally *tallies;       /* by worker */
};

/* Of all services that there are, and of those that were configured at some time. The control
 * thread's. */
struct standings {
    struct map map;
    struct standing *first;
    struct slab tallies; /* theirs, and those of endpoints: one for each worker together */
};

struct service {
    struct shared shared;
    struct standing *standing;
    struct cluster *cluster; /* NULL: it has no endpoint */
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

/* The endpoint for a request: `hash` is of what DP_RING_HASH goes by. Those that are ejected or
 * were tried (`tried`, at most `tried_count`) are passed over while there are others. NULL: all
 * were tried, or there is none. */
struct endpoint *service_pick(const struct service *service, uint64_t hash, uint64_t since_ms,
                              struct endpoint *const *tried, uint32_t tried_count,
                              uint64_t *random);

/* The following are for the control thread. */

/* The service with that content, with one more reference: the same as before if nothing has
 * changed. NULL with errno set: when out of memory, or EINVAL where the number had another name. */
struct service *service_intern(struct registry *registry, struct standings *standings,
                               const struct service_plan *plan);
void standings_init(struct standings *standings, uint32_t workers);
/* When there is no service any more. */
void standings_close(struct standings *standings);

#endif
