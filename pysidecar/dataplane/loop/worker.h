/* A worker: a thread's loop, and what each module keeps for it. */
#ifndef PYSIDECAR_LOOP_WORKER_H
#define PYSIDECAR_LOOP_WORKER_H

#include <stdbool.h>

#include "base/counter.h"
#include "base/terms.h"
#include "base/trace.h"
#include "loop/loop.h"

enum { SCRATCH_SIZE = 64 * 1024 }; /* bytes of one read: a worker's, not a connection's */

/* The sides of a connection. A direction is named by the side that is read. */
enum { DOWNSTREAM = 0, UPSTREAM = 1 };

/* Sums of one worker. */
struct counters {
    counter accepted, closed, bytes[2], bytes_spliced, connect_failures, accept_pauses;
    counter streams_refused, streams_not_taken; /* of HTTP/2 */
    counter buffers;                            /* relay buffers and pipes in use now */
};

/* struct dp_timeouts, as it can be changed at any time. */
struct timeouts {
    _Atomic uint32_t connect_ms, idle_ms, header_ms, ejection_ms, flush_ms;
};

struct worker {
    struct loop loop;
    struct watch mail; /* an eventfd by which others wake it */
    unsigned index;
    int diag; /* netlink: see diag_user; -1: not open */
    struct counters counters;
    struct trace trace;

    /* Shared by all workers. */
    const struct timeouts *timeouts;
    const struct limits *limits; /* of messages, see l7/codec.h */
    struct mosnhook_page *page;  /* NULL: there is none */

    /* Each belongs to the module of its name, and is known here by name only. Shared: */
    struct budget *budget;
    struct foreign *foreign;
    struct routes *routes;
    struct clients *clients;
    struct parks *parks;
    struct listeners *listeners;
    struct accelerator *accelerator;
    struct wanted *wanted;
    const struct tracing *tracing; /* NULL: nothing is traced */
    struct inbox *inbox;
    const struct session_handler *handler;
    /* The worker's own: */
    struct pipes *pipes;
    struct spares *spares;
    struct tables *tables;
    struct router *router;
    struct acceptors *acceptors;
    struct handover *handover;
    struct direct *direct;
    struct sockmap *sockmap;
    struct streams *streams;
    struct session *closed; /* in this turn; the control thread gets them at its end */

    uint8_t scratch[SCRATCH_SIZE];
};

/* From any thread: makes it look at what others may have left for it. */
void worker_wake(struct worker *worker);

static inline uint32_t timeout_of(const _Atomic uint32_t *ms)
{
    return atomic_load_explicit(ms, memory_order_relaxed);
}

#endif
