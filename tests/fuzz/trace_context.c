/* Contexts of traces: whatever comes, what is written is one that everybody reads as it was meant.
 *
 * An input is a byte that chooses, and names and values of fields, each up to a NUL. */
#include "../../pysidecar/dataplane/l7/trace_context.c"

#include "fuzz.h"

enum { MOST_FIELDS = 16 };

static struct text take_text(struct input *input)
{
    const uint8_t *end = input->left > 0 ? memchr(input->at, 0, input->left) : NULL;
    size_t size = end ? (size_t)(end - input->at) : input->left;
    struct text text = {(const char *)input->at, (uint32_t)size};

    input->at += size + (end != NULL);
    input->left -= size + (end != NULL);
    return text;
}

static void check_fields(const struct trace_context *context)
{
    CHECK(context->fields.count <= MOST_TRACE_FIELDS);
    for (uint32_t i = 0; i < context->fields.count; i++) {
        struct text value = context->fields.set[i].value;

        CHECK(trace_fields_replace(&context->fields, context->fields.set[i].name));
        CHECK(value.size > 0 && value.size < 80);
        for (uint32_t at = 0; at < value.size; at++)
            CHECK(memchr("0123456789abcdef-truels", value.at[at], 23));
    }
}

/* What whoever gets the request makes of it. */
static void check_next(const struct trace_policy *policy, enum dp_protocol protocol,
                       const struct trace_context *context, const struct field *fields,
                       uint32_t count)
{
    struct field sent[MOST_FIELDS + MOST_TRACE_FIELDS];
    struct trace_context next;
    uint64_t random = 2;
    uint32_t sent_count = 0;

    for (uint32_t i = 0; i < count; i++)
        if (!trace_fields_replace(&context->fields, fields[i].name))
            sent[sent_count++] = fields[i];
    for (uint32_t i = 0; i < context->fields.count; i++)
        sent[sent_count++] = context->fields.set[i];
    trace_context_of(policy, protocol, sent, sent_count, &random, &next);
    CHECK(next.known && next.sampled == context->sampled);
    CHECK(memcmp(next.id, context->id, sizeof next.id) == 0);
    CHECK(memcmp(next.parent, context->span, sizeof next.parent) == 0);
    CHECK(next.written == next.sampled);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct trace_policy policies[] = {
        {{DP_TRACE_W3C}, true, false, UINT64_MAX / 2},
        {{DP_TRACE_B3}, true, false, UINT64_MAX / 2},
        {{DP_TRACE_B3_MULTI, DP_TRACE_W3C}, true, true, 0},
        {{DP_TRACE_W3C, DP_TRACE_B3, DP_TRACE_B3_MULTI, DP_TRACE_SOFA},
         true,
         false,
         UINT64_MAX / 2},
        {{DP_TRACE_B3, DP_TRACE_SOFA, DP_TRACE_W3C}, false, false, 0},
    };
    struct input input = {data, size};
    uint8_t how = take_u8(&input);
    const struct trace_policy *policy = &policies[how % 5];
    enum dp_protocol protocol = how & 0x80 ? DP_BOLT : DP_HTTP1;
    struct field fields[MOST_FIELDS];
    struct trace_context context;
    uint32_t count = 0;
    uint64_t random = 1;
    char state[64];

    for (; count < MOST_FIELDS && input.left > 0; count++) {
        fields[count].name = take_text(&input);
        fields[count].value = take_text(&input);
    }
    trace_context_of(policy, protocol, fields, count, &random, &context);
    CHECK(trace_state(fields, count, state, sizeof state) <= sizeof state);
    CHECK(context.known || (!context.sampled && !context.written));
    CHECK(!context.sampled || context.written);
    check_fields(&context);
    if (context.written)
        check_next(policy, protocol, &context, fields, count);
    return 0;
}
