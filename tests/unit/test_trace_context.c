#include "unit.h"

#include <stdio.h>
#include <string.h>

#include "l7/trace_context.h"

#define TRACE "4bf92f3577b34da6a3ce929d0e0e4736"
#define PARENT "00f067aa0ba902b7"

static const struct trace_policy w3c = {{DP_TRACE_W3C}, true, false, 0};
static const struct trace_policy w3c_all = {{DP_TRACE_W3C}, true, true, 0};
static const struct trace_policy b3 = {{DP_TRACE_B3}, true, false, 0};
static const struct trace_policy b3_multi = {{DP_TRACE_B3_MULTI}, true, false, 0};
static const struct trace_policy sofa = {{DP_TRACE_SOFA}, true, true, 0};
static const struct trace_policy both = {{DP_TRACE_W3C, DP_TRACE_B3}, true, false, 0};
static const struct trace_policy joins = {{DP_TRACE_W3C}, false, false, 0};

/* Names and values in turn, as many as there are. */
struct headers {
    const char *texts[12];
};

/* What is written is valid until the next call. */
static struct trace_context of(const struct trace_policy *policy, enum dp_protocol protocol,
                               struct headers headers)
{
    static uint64_t random = 1;
    struct field fields[6];
    static struct trace_context context;
    uint32_t count = 0;

    for (; count < COUNT(fields) && headers.texts[2 * count]; count++) {
        const char *name = headers.texts[2 * count], *value = headers.texts[2 * count + 1];

        fields[count] =
            (struct field){{name, (uint32_t)strlen(name)}, {value, (uint32_t)strlen(value)}};
    }
    trace_context_of(policy, protocol, fields, count, &random, &context);
    return context;
}

#define OF(policy, ...) of(&(policy), DP_HTTP1, (struct headers){{__VA_ARGS__}})
#define OF_BOLT(policy, ...) of(&(policy), DP_BOLT, (struct headers){{__VA_ARGS__}})

static const char *hex(const uint8_t *bytes, size_t size)
{
    static char text[2][33];
    static unsigned turn;
    char *to = text[turn++ % 2];

    for (size_t i = 0; i < size; i++)
        sprintf(to + 2 * i, "%02x", bytes[i]);
    return to;
}

static void assert_id(const struct trace_context *context, const char *id)
{
    assert_string_equal(hex(context->id, sizeof context->id), id);
}

/* NULL: it is not written. */
static const char *written(const struct trace_context *context, const char *name)
{
    static char value[MOST_TRACE_TEXT];

    for (uint32_t i = 0; i < context->fields.count; i++) {
        const struct field *field = &context->fields.set[i];

        if (field->name.size != strlen(name) || memcmp(field->name.at, name, field->name.size))
            continue;
        memcpy(value, field->value.at, field->value.size);
        value[field->value.size] = 0;
        return value;
    }
    return NULL;
}

static bool replaces(const struct trace_context *context, const char *name)
{
    return trace_fields_replace(&context->fields, (struct text){name, (uint32_t)strlen(name)});
}

static bool has_span(const struct trace_context *context)
{
    static const uint8_t none[DP_SPAN_ID_BYTES];

    return memcmp(context->span, none, sizeof none) != 0;
}

/* ---- W3C ---- */

static void test_a_sampled_trace_goes_on_with_our_span(void **state)
{
    struct trace_context context = OF(w3c, "TraceParent", "00-" TRACE "-" PARENT "-01");
    char expected[64];

    (void)state;
    assert_true(context.known && context.sampled && context.written);
    assert_id(&context, TRACE);
    assert_string_equal(hex(context.parent, sizeof context.parent), PARENT);
    assert_string_not_equal(hex(context.span, sizeof context.span), PARENT);
    snprintf(expected, sizeof expected, "00-" TRACE "-%s-01",
             hex(context.span, sizeof context.span));
    assert_string_equal(written(&context, "traceparent"), expected);
    assert_true(replaces(&context, "TRACEPARENT"));
    assert_false(replaces(&context, "tracestate"));
    assert_false(replaces(&context, "b3"));
}

static void test_a_trace_that_is_not_sampled_passes_as_it_is(void **state)
{
    struct trace_context context = OF(w3c_all, "traceparent", "00-" TRACE "-" PARENT "-00");

    (void)state;
    assert_true(context.known);
    assert_id(&context, TRACE);
    assert_false(context.sampled || context.written || has_span(&context));
}

static void test_what_later_versions_add_is_not_understood(void **state)
{
    struct trace_context context = OF(w3c, "traceparent", "cc-" TRACE "-" PARENT "-03-more");

    (void)state;
    assert_id(&context, TRACE);
    assert_true(context.sampled);
    assert_memory_equal(written(&context, "traceparent"), "00-" TRACE, 35);
    assert_string_equal(written(&context, "traceparent") + 52, "-03");
    context = OF(w3c, "traceparent", "00-" TRACE "-" PARENT "-fd");
    assert_string_equal(written(&context, "traceparent") + 52, "-01");
}

static void test_a_malformed_traceparent_begins_a_new_trace(void **state)
{
    static const char *const malformed[] = {
        "",
        "00",
        "00-" TRACE "-" PARENT,
        "00-" TRACE "-" PARENT "-0",
        "00-" TRACE "-" PARENT "-01-more",
        "00-" TRACE "-" PARENT "-01-",
        "cc-" TRACE "-" PARENT "-01more",
        "ff-" TRACE "-" PARENT "-01",
        "0-" TRACE "-" PARENT "-011",
        "00-" TRACE "-" PARENT "-0g",
        "00-" TRACE "_" PARENT "-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-" PARENT "-01",
        "00-" TRACE "-00F067AA0BA902B7-01",
        "00-00000000000000000000000000000000-" PARENT "-01",
        "00-" TRACE "-0000000000000000-01",
        " 00-" TRACE "-" PARENT "-01",
    };

    (void)state;
    for (size_t i = 0; i < COUNT(malformed); i++) {
        struct trace_context context =
            OF(w3c_all, "traceparent", malformed[i], "tracestate", "a=b");

        assert_true(context.known && context.sampled && context.written);
        assert_string_not_equal(hex(context.id, sizeof context.id), TRACE);
        assert_true(replaces(&context, "traceparent") && replaces(&context, "tracestate"));
        context = OF(joins, "traceparent", malformed[i]);
        assert_false(context.known || context.written);
    }
}

static void test_two_of_one_header_are_malformed(void **state)
{
    struct trace_context context = OF(w3c_all, "traceparent", "00-" TRACE "-" PARENT "-01",
                                      "traceparent", "00-" TRACE "-" PARENT "-01");

    (void)state;
    assert_string_not_equal(hex(context.id, sizeof context.id), TRACE);
    context = OF(b3, "b3", TRACE "-" PARENT "-1", "b3", TRACE "-" PARENT "-1");
    assert_string_not_equal(hex(context.id, sizeof context.id), TRACE);
}

static void test_a_state_passes_up_to_a_limit(void **state)
{
    static char huge[MOST_TRACE_STATE + 1], many[2 * (MOST_STATE_MEMBERS + 1)], joined[600];
    struct trace_context context;
    struct field fields[] = {
        {TEXT("tracestate"), TEXT("a=1,b=2")},
        {TEXT("traceparent"), TEXT("00")},
        {TEXT("TraceState"), TEXT("c=3")},
    };

    (void)state;
    memset(huge, 'x', sizeof huge - 1);
    context = OF(w3c, "traceparent", "00-" TRACE "-" PARENT "-01", "tracestate", huge);
    assert_true(context.sampled && replaces(&context, "tracestate"));
    for (unsigned i = 0; i < sizeof many - 1; i++)
        many[i] = i % 2 ? ',' : 'x';
    context = OF(w3c, "traceparent", "00-" TRACE "-" PARENT "-01", "tracestate", many);
    assert_true(replaces(&context, "tracestate"));
    many[2 * MOST_STATE_MEMBERS - 1] = 0;
    context = OF(w3c, "traceparent", "00-" TRACE "-" PARENT "-01", "tracestate", many);
    assert_false(replaces(&context, "tracestate"));
    assert_int_equal(trace_state(fields, COUNT(fields), joined, sizeof joined), 11);
    assert_memory_equal(joined, "a=1,b=2,c=3", 11);
    assert_int_equal(trace_state(fields, COUNT(fields), joined, 10), 0);
}

/* ---- deciding ---- */

/* TRACE is as a number of its last 8 bytes 0xa3ce929d0e0e4736. */
static void test_the_id_decides_as_opentelemetry_has_it(void **state)
{
    struct trace_policy policy = b3;
    struct trace_context context;

    (void)state;
    policy.bound = 0xa3ce929d0e0e4736;
    context = OF(policy, "b3", TRACE "-" PARENT);
    assert_true(context.known);
    assert_false(context.sampled || context.written);
    policy.bound++;
    context = OF(policy, "b3", TRACE "-" PARENT);
    assert_true(context.sampled && context.written);
    policy.bound = 0;
    policy.all = true;
    assert_true(OF(policy, "b3", TRACE "-" PARENT).sampled);
}

static void test_of_new_traces_a_share_is_sampled(void **state)
{
    struct trace_policy policy = w3c;
    unsigned sampled = 0;

    (void)state;
    policy.bound = UINT64_MAX / 10;
    for (unsigned i = 0; i < 20000; i++) {
        struct trace_context context = OF(policy, "accept", "*/*");

        assert_true(context.known && context.written && has_span(&context));
        assert_string_equal(written(&context, "traceparent") + 52, context.sampled ? "-01" : "-00");
        sampled += context.sampled;
    }
    assert_in_range(sampled, 1800, 2200);
}

static void test_with_a_share_of_nothing_no_trace_begins(void **state)
{
    struct trace_context context = OF(joins, "accept", "*/*");

    (void)state;
    assert_false(context.known || context.written);
    assert_true(OF(joins, "traceparent", "00-" TRACE "-" PARENT "-01").sampled);
}

/* ---- B3 ---- */

static void test_b3_in_one_header(void **state)
{
    struct trace_context context = OF(b3, "B3", TRACE "-" PARENT "-1-05e3ac9a4f6e3b90");
    char expected[80];

    (void)state;
    assert_true(context.sampled);
    assert_id(&context, TRACE);
    assert_string_equal(hex(context.parent, sizeof context.parent), PARENT);
    snprintf(expected, sizeof expected, TRACE "-%s-1-" PARENT,
             hex(context.span, sizeof context.span));
    assert_string_equal(written(&context, "b3"), expected);
    assert_null(written(&context, "X-B3-TraceId"));
    assert_true(replaces(&context, "x-b3-sampled"));
    context = OF(b3, "b3", TRACE "-" PARENT "-d");
    assert_non_null(strstr(written(&context, "b3"), "-d-" PARENT));
    context = OF(b3, "b3", TRACE "-" PARENT "-0");
    assert_true(context.known);
    assert_false(context.sampled || context.written);
}

static void test_an_id_of_64_bits_stays_one(void **state)
{
    struct trace_context context = OF(b3, "b3", "A3CE929D0E0E4736-" PARENT "-1");

    (void)state;
    assert_id(&context, "0000000000000000a3ce929d0e0e4736");
    assert_memory_equal(written(&context, "b3"), "a3ce929d0e0e4736-", 17);
}

static void test_a_decision_may_come_alone(void **state)
{
    struct trace_context context = OF(b3, "b3", "1");

    (void)state;
    assert_true(context.sampled && context.written);
    context = OF(b3, "b3", "d");
    assert_non_null(strstr(written(&context, "b3"), "-d"));
    context = OF(b3, "b3", "0");
    assert_false(context.known || context.sampled || context.written);
    context = OF(b3, "X-B3-Sampled", "0");
    assert_false(context.known || context.sampled || context.written);
    assert_true(OF(b3, "X-B3-Flags", "1").sampled);
}

static void test_b3_in_several_headers(void **state)
{
    struct trace_context context = OF(b3_multi, "X-B3-TraceId", TRACE, "X-B3-SpanId", PARENT,
                                      "X-B3-ParentSpanId", "05e3ac9a4f6e3b90", "X-B3-Sampled", "1");

    (void)state;
    assert_true(context.sampled);
    assert_string_equal(written(&context, "X-B3-TraceId"), TRACE);
    assert_string_equal(written(&context, "X-B3-SpanId"), hex(context.span, sizeof context.span));
    assert_string_equal(written(&context, "X-B3-ParentSpanId"), PARENT);
    assert_string_equal(written(&context, "X-B3-Sampled"), "1");
    assert_null(written(&context, "b3"));
    assert_true(replaces(&context, "x-b3-spanid") && replaces(&context, "x-b3-flags"));
    context = OF(b3_multi, "x-b3-traceid", TRACE, "x-b3-spanid", PARENT, "x-b3-flags", "1");
    assert_string_equal(written(&context, "X-B3-Flags"), "1");
    assert_null(written(&context, "X-B3-Sampled"));
    /* Who reads several, reads on. */
    context = OF(b3, "X-B3-TraceId", TRACE, "X-B3-SpanId", PARENT, "X-B3-Sampled", "true");
    assert_non_null(written(&context, "b3"));
    assert_non_null(written(&context, "X-B3-TraceId"));
    /* One header counts more. */
    context = OF(b3, "X-B3-TraceId", "1234567812345678", "X-B3-SpanId", PARENT, "b3",
                 TRACE "-" PARENT "-1");
    assert_id(&context, TRACE);
}

static void test_malformed_b3_begins_a_new_trace(void **state)
{
    static const char *const malformed[] = {
        "",
        "-",
        "2",
        TRACE,
        TRACE "-",
        TRACE "-" PARENT "-2",
        TRACE "-" PARENT "-1-",
        TRACE "-" PARENT "-1-xyz",
        TRACE "-" PARENT "-1-05e3ac9a4f6e3b90-1",
        TRACE "00-" PARENT "-1",
        "0000000000000000-" PARENT "-1",
        TRACE "-0000000000000000-1",
        TRACE "-" PARENT "0-1",
    };
    struct trace_context context;

    (void)state;
    for (size_t i = 0; i < COUNT(malformed); i++) {
        context = OF(b3, "b3", malformed[i]);
        assert_true(context.known);
        assert_string_not_equal(hex(context.id, sizeof context.id), TRACE);
        assert_false(context.sampled);
    }
    context = OF(b3, "X-B3-TraceId", TRACE, "X-B3-Sampled", "1");
    assert_string_not_equal(hex(context.id, sizeof context.id), TRACE);
    assert_false(context.sampled);
}

static void test_the_first_sound_form_counts_and_all_are_written(void **state)
{
    struct trace_context context = OF(both, "b3", "1234567812345678-" PARENT "-1", "traceparent",
                                      "00-" TRACE "-" PARENT "-01");

    (void)state;
    assert_id(&context, TRACE);
    assert_memory_equal(written(&context, "traceparent"), "00-" TRACE, 35);
    assert_memory_equal(written(&context, "b3"), TRACE, 32);
    context = OF(both, "b3", TRACE "-" PARENT "-1", "traceparent", "nonsense");
    assert_id(&context, TRACE);
    assert_memory_equal(written(&context, "traceparent"), "00-" TRACE, 35);
    /* What is not in the policy is not ours. */
    context = OF(w3c_all, "b3", TRACE "-" PARENT "-1");
    assert_string_not_equal(hex(context.id, sizeof context.id), TRACE);
    assert_false(replaces(&context, "b3"));
}

/* ---- SOFATracer ---- */

#define SOFA_ID "0a0fe9d21606377600000100112345"

static void test_sofa_names_the_trace(void **state)
{
    struct trace_context context =
        OF_BOLT(sofa, "rpc_trace_context.sofaTraceId", SOFA_ID, "rpc_trace_context.sofaRpcId",
                "0.1", "rpc_trace_context.samp", "true");

    (void)state;
    assert_true(context.known && context.sampled);
    assert_id(&context, "00" SOFA_ID);
    assert_int_equal(context.fields.count, 0);
    assert_false(replaces(&context, "rpc_trace_context.sofaTraceId"));
    context =
        OF_BOLT(sofa, "rpc_trace_context.sofaTraceId", SOFA_ID, "rpc_trace_context.samp", "false");
    assert_true(context.known);
    assert_false(context.sampled || context.written);
    /* Of another protocol it means nothing. */
    context = OF(sofa, "rpc_trace_context.sofaTraceId", SOFA_ID);
    assert_string_not_equal(hex(context.id, sizeof context.id), "00" SOFA_ID);
}

static void test_sofa_is_told_of_a_new_trace(void **state)
{
    struct trace_context context = OF_BOLT(sofa, "service", "Echo:1.0");

    (void)state;
    assert_true(context.sampled);
    assert_string_equal(written(&context, "rpc_trace_context.sofaTraceId"),
                        hex(context.id, sizeof context.id));
    assert_string_equal(written(&context, "rpc_trace_context.sofaRpcId"), "0");
    assert_string_equal(written(&context, "rpc_trace_context.samp"), "true");
    context = OF(sofa, "service", "Echo:1.0");
    assert_int_equal(context.fields.count, 0);
    context = OF_BOLT(sofa, "rpc_trace_context.sofaTraceId", "0a0fe9d2160637760000010011234500000");
    assert_string_not_equal(hex(context.id, sizeof context.id), SOFA_ID);
    assert_false(replaces(&context, "rpc_trace_context.sofaTraceId"));
}

/* SOFATracer's ids differ in a few digits: a share of them is sampled all the same. */
static void test_of_sofas_traces_a_share_is_sampled(void **state)
{
    struct trace_policy policy = sofa;
    unsigned sampled = 0;

    (void)state;
    policy.all = false;
    policy.bound = UINT64_MAX / 10;
    for (unsigned i = 0; i < 10000; i++) {
        char id[64];

        snprintf(id, sizeof id, "0a0fe9d2%013u%04u12345", i / 9000, 1000 + i % 9000);
        sampled += OF_BOLT(policy, "rpc_trace_context.sofaTraceId", id).sampled;
    }
    assert_in_range(sampled, 850, 1150);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_sampled_trace_goes_on_with_our_span),
        cmocka_unit_test(test_a_trace_that_is_not_sampled_passes_as_it_is),
        cmocka_unit_test(test_what_later_versions_add_is_not_understood),
        cmocka_unit_test(test_a_malformed_traceparent_begins_a_new_trace),
        cmocka_unit_test(test_two_of_one_header_are_malformed),
        cmocka_unit_test(test_a_state_passes_up_to_a_limit),
        cmocka_unit_test(test_the_id_decides_as_opentelemetry_has_it),
        cmocka_unit_test(test_of_new_traces_a_share_is_sampled),
        cmocka_unit_test(test_with_a_share_of_nothing_no_trace_begins),
        cmocka_unit_test(test_b3_in_one_header),
        cmocka_unit_test(test_an_id_of_64_bits_stays_one),
        cmocka_unit_test(test_a_decision_may_come_alone),
        cmocka_unit_test(test_b3_in_several_headers),
        cmocka_unit_test(test_malformed_b3_begins_a_new_trace),
        cmocka_unit_test(test_the_first_sound_form_counts_and_all_are_written),
        cmocka_unit_test(test_sofa_names_the_trace),
        cmocka_unit_test(test_sofa_is_told_of_a_new_trace),
        cmocka_unit_test(test_of_sofas_traces_a_share_is_sampled),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
