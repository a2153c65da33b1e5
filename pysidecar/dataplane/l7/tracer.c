#include "l7/tracer.h"

#include <stdlib.h>
#include <sys/random.h>

#include "l7/message.h"

enum { SPARE_SPANS = 64 };

bool tracing_set(struct tracing *tracing, const struct dp_tracing *settings)
{
    uint32_t forms = 0;

    for (unsigned i = 0; i < DP_TRACE_FORMS; i++) {
        if (settings->forms[i] > DP_TRACE_SOFA)
            return false;
        forms |= settings->forms[i] << 8 * i;
    }
    atomic_store(&tracing->bound, settings->bound);
    atomic_store(&tracing->all, settings->all);
    atomic_store(&tracing->forms, forms);
    return true;
}

bool tracer_open(struct tracer *tracer)
{
    *tracer = (struct tracer){.spare = NULL};
    /* Not by the time: the ids of all sidecars of a mesh must differ. */
    return getrandom(&tracer->random, sizeof tracer->random, 0) == sizeof tracer->random;
}

void tracer_close(struct tracer *tracer)
{
    while (tracer->spare) {
        struct span *span = tracer->spare;

        tracer->spare = span->next;
        free(span);
    }
}

static struct span *take_span(struct tracer *tracer)
{
    struct span *span = tracer->spare;

    if (!span)
        return calloc(1, sizeof *span);
    tracer->spare = span->next;
    tracer->spare_count--;
    memset(span, 0, sizeof *span);
    return span;
}

void tracer_free(struct tracer *tracer, struct span *span)
{
    if (!span)
        return;
    if (tracer->spare_count >= SPARE_SPANS) {
        free(span);
        return;
    }
    span->next = tracer->spare;
    tracer->spare = span;
    tracer->spare_count++;
}

/* False: nothing is traced. */
static bool read_policy(const struct tracing *tracing, struct trace_policy *policy)
{
    uint32_t forms = atomic_load_explicit(&tracing->forms, memory_order_relaxed);

    for (unsigned i = 0; i < DP_TRACE_FORMS; i++)
        policy->forms[i] = (uint8_t)(forms >> 8 * i);
    policy->bound = atomic_load_explicit(&tracing->bound, memory_order_relaxed);
    policy->all = atomic_load_explicit(&tracing->all, memory_order_relaxed);
    policy->starts = policy->all || policy->bound > 0;
    return forms != 0;
}

static struct span *begin_span(struct tracer *tracer, const struct message *request,
                               const struct trace_context *context)
{
    struct span *span = take_span(tracer);
    struct text authority = request->authority;

    if (!span) /* it is the trace that has a gap */
        return NULL;
    memcpy(span->data.parent_id, context->parent, sizeof span->data.parent_id);
    if (authority.size > 0 && authority.size <= sizeof span->data.authority)
        memcpy(span->data.authority, authority.at, authority.size);
    trace_state(request->fields, request->field_count, span->data.state, sizeof span->data.state);
    return span;
}

const struct trace_fields *tracer_begin(struct worker *worker, struct tracer *tracer,
                                        enum dp_protocol protocol, const struct message *request,
                                        struct dp_request *record, struct trace_context *context,
                                        struct span **span)
{
    struct trace_policy policy;
    size_t size;

    /* CONNECT is for a proxy, which is told nothing of what goes through it. */
    if (!worker->tracing || !read_policy(worker->tracing, &policy) || request->facts.connect)
        return NULL;
    trace_context_of(&policy, protocol, request->fields, request->field_count, &tracer->random,
                     context);
    if (!context->known)
        return NULL;
    memcpy(record->trace_id, context->id, sizeof record->trace_id);
    if (context->sampled) {
        memcpy(record->span_id, context->span, sizeof record->span_id);
        *span = begin_span(tracer, request, context);
    }
    size = request->frame.size + trace_fields_size(&context->fields, 8);
    if (!context->written ||
        (protocol_family(protocol) != DP_HTTP1 && size > worker->limits->frame_bytes))
        return NULL;
    return &context->fields;
}
