/* Trace contexts of requests: which trace a request belongs to, whether it is sampled, and what is
 * said of that where it goes on. Without I/O.
 *
 * Forms: W3C's `traceparent` and `tracestate` (https://www.w3.org/TR/trace-context-2/), B3 in one
 * header and in several (https://github.com/openzipkin/b3-propagation), and SOFATracer's in the
 * header section of Bolt. Those of the policy are looked for one after the other, and the first
 * sound context counts. What the sender has decided, sampled or not, holds; where it has not, the
 * id of the trace decides, so that all who have the same ratio decide alike. */
#ifndef PYSIDECAR_L7_TRACE_CONTEXT_H
#define PYSIDECAR_L7_TRACE_CONTEXT_H

#include "l7/codec.h"

/* struct dp_tracing, as a worker reads it once for a request. */
struct trace_policy {
    uint8_t forms[DP_TRACE_FORMS]; /* enum dp_trace_form; 0: no more */
    bool starts;                   /* traces of requests that belong to none */
    bool all;
    uint64_t bound;
};

enum {
    MOST_TRACE_FIELDS = 12,
    MOST_TRACE_TEXT = 320,
    MOST_TRACE_STATE = 4096, /* bytes of tracestate that are passed on, all headers together */
    MOST_STATE_MEMBERS = 32, /* of the list in them (W3C, 3.3.1) */
};

/* Fields that take the place of what came. */
struct trace_fields {
    struct field set[MOST_TRACE_FIELDS];
    uint32_t count;
    uint32_t replaced;          /* 1 << enum trace_name of those that are not passed on */
    char text[MOST_TRACE_TEXT]; /* of the values */
};

/* Of a request. */
struct trace_context {
    uint8_t id[DP_TRACE_ID_BYTES];
    uint8_t parent[DP_SPAN_ID_BYTES]; /* the span that sent it; all zero: none that is known */
    uint8_t span[DP_SPAN_ID_BYTES];   /* ours, which becomes the parent; all zero: there is none */
    bool known;                       /* it belongs to a trace */
    bool sampled;
    bool written; /* `fields` are to be sent */
    struct trace_fields fields;
};

/* `random`: the state, see base/random.h. */
void trace_context_of(const struct trace_policy *policy, enum dp_protocol protocol,
                      const struct field *fields, uint32_t count, uint64_t *random,
                      struct trace_context *context);

/* Whether a field of the request is not passed on. `fields` may be NULL. */
bool trace_fields_replace(const struct trace_fields *fields, struct text name);
/* How many bytes names and values of the new ones have, and each `around` more. */
size_t trace_fields_size(const struct trace_fields *fields, size_t around);

/* The values of all `tracestate` fields as one, as far as it is sound and fits; "" otherwise. */
size_t trace_state(const struct field *fields, uint32_t count, char *to, size_t room);

#endif
