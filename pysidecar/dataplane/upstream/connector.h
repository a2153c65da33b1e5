/* One way to get a connected upstream: endpoint after endpoint, until one answers. */
#ifndef PYSIDECAR_UPSTREAM_CONNECTOR_H
#define PYSIDECAR_UPSTREAM_CONNECTOR_H

#include "upstream/choice.h"

struct connector {
    struct worker *worker;
    void *owner;      /* the caller's own */
    uint64_t session; /* its id, for trace points; 0: none */
    const struct origin *origin;
    struct choice choice; /* begun; the caller's again when it is done */
    struct watch watch;   /* the socket that is being connected */
    struct timer timer;
    struct task task; /* to try more endpoints: it used its batch */
    int error;        /* of the last one that failed */
    /* Called once, perhaps from within connector_start: with a connected socket, which is the
     * caller's and nobody watches, or with the errno of the last endpoint, negative. */
    void (*done)(struct connector *connector, int fd);
};

/* The caller has set worker, session, origin, choice and done. */
void connector_start(struct connector *connector);
/* Before it is done: it will not be. */
void connector_cancel(struct connector *connector);
/* Why a connection ends for which there is no upstream, by the (positive) errno. */
enum dp_end connector_end(int error);
/* Whether the endpoint, not this host or the network, is at fault. */
bool connector_is_endpoints_doing(int error);

#endif
