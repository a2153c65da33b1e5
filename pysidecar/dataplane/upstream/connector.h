/* Connects to an upstream: tries endpoint after endpoint, until one answers. */
#ifndef PYSIDECAR_UPSTREAM_CONNECTOR_H
#define PYSIDECAR_UPSTREAM_CONNECTOR_H

#include "upstream/choice.h"

struct connector {
    struct worker *worker;
    const struct origin *origin;
    struct choice choice; /* begun by the caller, who gets it back in `done` */
    struct watch watch;   /* the socket that is being connected */
    struct timer timer;
    struct task task; /* to try more endpoints: it used its batch */
    int error;        /* of the last one that failed */
    /* Called once, perhaps from within connector_start: with a connected, unwatched socket, which
     * is the caller's, or with the last endpoint's -errno. */
    void (*done)(struct connector *connector, int fd);
};

/* The caller has set worker, origin, choice and done. */
void connector_start(struct connector *connector);
/* Ends it before it is done: `done` is not called. */
void connector_cancel(struct connector *connector);
/* Why a connection without an upstream ends, by the (positive) errno. */
enum dp_end connector_end(int error);

#endif
