/* Where a connection goes: its route, and the endpoints of that, one after the other. */
#ifndef PYSIDECAR_UPSTREAM_CHOICE_H
#define PYSIDECAR_UPSTREAM_CHOICE_H

#include <stdbool.h>

#include "loop/worker.h"
#include "upstream/cluster.h"
#include "upstream/origin.h"
#include "upstream/service.h"

struct choice {
    uint32_t route;                           /* its index; MOSNHOOK_NO_RULE: none matches */
    enum dp_action action;                    /* what it says */
    uint32_t protocol, detect_ms, undetected; /* of the route, with DP_REQUESTS */
    struct cluster *cluster;                  /* NULL: the original destination */
    struct tried_cluster next;                /* of which endpoints are tried after that one's */
    struct endpoint *endpoint;                /* the one that is tried */
    struct mosnhook_address upstream;         /* its address */
    bool fixed;                               /* without a cluster: `upstream` is what is tried */
    uint32_t first, attempts;                 /* in the cluster; endpoints tried or postponed */
    uint64_t postponed;                       /* attempts, as bits: the endpoints were ejected */
    bool any;                                 /* also endpoints that are not available */
};

/* Of a service's endpoints, which are referenced. */
void choice_of_service(struct choice *choice, struct worker *worker, const struct service *service);
/* Finds the route. DP_END_NONE, or why the connection is refused. */
enum dp_end choice_begin(struct choice *choice, struct worker *worker, const struct origin *origin);
/* Goes on to the next endpoint that was not tried: false when there is none. Those that are ejected
 * come last. */
bool choice_next(struct choice *choice, struct worker *worker, const struct origin *origin);
/* Where a connection goes without an endpoint of its route. */
struct mosnhook_address choice_default_upstream(const struct origin *origin);
/* Its turn at the endpoints was not used. */
void choice_give_back(struct choice *choice);
/* Nobody is connected to the endpoint any more. */
void choice_release(struct choice *choice);

#endif
