/* Spans of requests: each that is sampled has one, from when it is routed until it is reported. */
#ifndef PYSIDECAR_L7_TRACER_H
#define PYSIDECAR_L7_TRACER_H

#include "l7/trace_context.h"
#include "loop/worker.h"

struct span {
    struct dp_span data;
    struct span *next; /* of those that are spare */
};

/* What is to be traced; shared by all workers, and changed at any time. */
struct tracing {
    _Atomic uint64_t bound;
    _Atomic uint32_t forms; /* a byte each, as in dp_tracing; 0: nothing is traced */
    _Atomic uint32_t all;
};

/* False: there is no such form. */
bool tracing_set(struct tracing *tracing, const struct dp_tracing *settings);

/* A worker's. */
struct tracer {
    uint64_t random;
    struct span *spare;
    unsigned spare_count;
};

/* False: there is nothing to begin with. */
bool tracer_open(struct tracer *tracer);
void tracer_close(struct tracer *tracer);

/* Finds out to which trace a request belongs, and notes it in the record. `context` is to be
 * filled, and must stay as long as what is returned: the fields that are to be sent for it, NULL
 * where there are none. Stores the span in `*span`, NULL where it is not sampled. */
const struct trace_fields *tracer_begin(struct worker *worker, struct tracer *tracer,
                                        enum dp_protocol protocol, const struct message *request,
                                        struct dp_request *record, struct trace_context *context,
                                        struct span **span);
/* It is reported. Takes NULL, too. */
void tracer_free(struct tracer *tracer, struct span *span);

#endif
