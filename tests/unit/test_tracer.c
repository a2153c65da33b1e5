/* Spans of requests; and what each codec makes of the context of a trace. */
#include "frames.h"

#include <stdio.h>

#include "l7/http1.h"
#include "l7/tracer.h"

#define TRACE "4bf92f3577b34da6a3ce929d0e0e4736"
#define PARENT "00f067aa0ba902b7"
#define TRACEPARENT "00-" TRACE "-" PARENT "-01"

/* Stands for what l7/trace_context.c has made of a request. */
static struct trace_fields new_context(void)
{
    return (struct trace_fields){
        .set = {{TEXT("traceparent"), TEXT("new")}, {TEXT("b3"), TEXT("newer")}},
        .count = 2,
        .replaced = ~0u,
    };
}

/* ---- HTTP/1.1 ---- */

static const char *encode_http(const char *data, const struct adjustment *adjustment)
{
    static char to[1024];
    static const struct limits http = {.line_bytes = 256, .head_bytes = 1024, .fields = 16};
    struct decoder decoder = {.limits = &http};
    struct encoder encoder = {0};
    struct message message;
    size_t consumed, size;

    assert_int_equal(
        codec_http1.decode(&decoder, (const uint8_t *)data, strlen(data), &consumed, &message),
        CODEC_HEAD);
    size = codec_http1.encode(&encoder, &message, adjustment, (uint8_t *)to, sizeof to - 1);
    to[size] = 0;
    return to;
}

#define OLD_HTTP                        \
    "GET / HTTP/1.1\r\nHost: a\r\n"     \
    "Connection: b3, tracestate, c\r\n" \
    "Traceparent: old\r\nTRACESTATE: a=b\r\nX-B3-Sampled: 1\r\nb3: 0\r\nx: y\r\nc: d\r\n\r\n"

static void test_headers_are_replaced(void **state)
{
    static const struct field set[] = {{TEXT("traceparent"), TEXT("the rule's")}};
    static const struct text remove[] = {TEXT("b3")};
    struct rewrite rewrite = {.set = set, .set_count = 1, .remove = remove, .remove_count = 1};
    struct trace_fields trace = new_context();
    struct adjustment adjustment = {.trace = &trace};

    (void)state;
    assert_string_equal(
        encode_http(OLD_HTTP, &adjustment),
        "GET / HTTP/1.1\r\nHost: a\r\nx: y\r\ntraceparent: new\r\nb3: newer\r\n\r\n");
    /* A rule knows best. */
    adjustment.rewrite = &rewrite;
    assert_string_equal(encode_http(OLD_HTTP, &adjustment),
                        "GET / HTTP/1.1\r\nHost: a\r\nx: y\r\ntraceparent: the rule's\r\n\r\n");
}

static void test_headers_pass_as_they_are(void **state)
{
    struct adjustment adjustment = {.trace = NULL};

    (void)state;
    assert_string_equal(encode_http(OLD_HTTP, &adjustment),
                        "GET / HTTP/1.1\r\nHost: a\r\nTraceparent: old\r\nTRACESTATE: a=b\r\n"
                        "X-B3-Sampled: 1\r\nb3: 0\r\nx: y\r\n\r\n");
}

/* ---- Bolt ---- */

static void append_pair(struct bytes *section, const char *name, const char *value)
{
    append_number(section, strlen(name), 4);
    append(section, name, strlen(name));
    append_number(section, strlen(value), 4);
    append(section, value, strlen(value));
}

static struct bytes *bolt_request(const struct bytes *section)
{
    struct bytes *bytes = no_bytes();

    APPEND(bytes, "\x01\x01\x00\x01\x01\x00\x00\x00\x07\x01\x00\x00\x0b\xb8\x00\x01");
    append_number(bytes, section->size, 2);
    append_number(bytes, 4, 4);
    APPEND(bytes, "C");
    append(bytes, section->data, section->size);
    APPEND(bytes, "body");
    return bytes;
}

static void test_a_header_section_is_replaced(void **state)
{
    struct trace_fields trace = new_context();
    struct adjustment adjustment = {.id = 7, .trace = &trace};
    struct bytes *section = no_bytes(), *before, *after, *expected, *new_section = no_bytes();
    struct message message;

    (void)state;
    append_pair(section, "traceparent", TRACEPARENT);
    append_pair(section, "service", "Echo:1.0");
    append_pair(new_section, "service", "Echo:1.0");
    append_pair(new_section, "traceparent", "new");
    append_pair(new_section, "b3", "newer");
    before = bolt_request(section);
    expected = bolt_request(new_section);
    message = decode_one(&codec_bolt, false, before);
    after = encode(&codec_bolt, &message, &adjustment);
    assert_int_equal(after->size, expected->size);
    assert_memory_equal(after->data, expected->data, after->size);
    message = decode_one(&codec_bolt, false, after);
    assert_text(message.fields[1].value, "new");
    free(section);
    free(new_section);
    free(before);
    free(after);
    free(expected);
}

/* Without headers it is bare SOFABolt, and a section that is full takes no more. */
static void test_a_header_section_that_takes_nothing(void **state)
{
    struct trace_fields trace = new_context();
    struct adjustment adjustment = {.id = 7, .trace = &trace};
    struct bytes *section = no_bytes(), *before, *after;
    struct message message;

    (void)state;
    for (int full = 0; full < 2; full++) {
        if (full) {
            append_number(section, 1, 4);
            append(section, "a", 1);
            append_number(section, INT16_MAX - 29, 4);
            section->size += INT16_MAX - 29;
        }
        before = bolt_request(section);
        message = decode_one(&codec_bolt, false, before);
        after = encode(&codec_bolt, &message, &adjustment);
        assert_int_equal(after->size, before->size);
        assert_memory_equal(after->data, before->data, after->size);
        free(before);
        free(after);
    }
    free(section);
}

/* ---- Dubbo ---- */

#define FRONT \
    "\x05"    \
    "2.0.2"   \
    "\x04"    \
    "Echo"    \
    "\x05"    \
    "1.0.0"   \
    "\x05"    \
    "hello"
#define ARGUMENT         \
    "\x12"               \
    "Ljava/lang/String;" \
    "\x02hi"

static struct bytes *dubbo_request(const void *body, size_t size)
{
    struct bytes *bytes = no_bytes();

    APPEND(bytes, "\xda\xbb\xc2\x00\x00\x00\x00\x00\x00\x00\x00\x07");
    append_number(bytes, size, 4);
    append(bytes, body, size);
    return bytes;
}

#define DUBBO(body) dubbo_request((body), sizeof(body) - 1)

static void expect_dubbo(struct bytes *before, struct bytes *expected)
{
    struct trace_fields trace = new_context();
    struct adjustment adjustment = {.id = 7, .trace = &trace};
    struct message message = decode_one(&codec_dubbo, false, before);
    struct bytes *after = encode(&codec_dubbo, &message, &adjustment);

    assert_int_equal(after->size, expected->size);
    assert_memory_equal(after->data, expected->data, after->size);
    free(before);
    free(after);
    free(expected);
}

#define NEW       \
    "\x0b"        \
    "traceparent" \
    "\x03"        \
    "new"         \
    "\x02"        \
    "b3"          \
    "\x05"        \
    "newer"

static void test_attachments_are_replaced(void **state)
{
    (void)state;
    expect_dubbo(DUBBO(FRONT ARGUMENT "H\x04"
                                      "path\x04"
                                      "Echo"
                                      "Z"),
                 DUBBO(FRONT ARGUMENT "H\x04"
                                      "path\x04"
                                      "Echo" NEW "Z"));
    expect_dubbo(DUBBO(FRONT ARGUMENT "HZ"), DUBBO(FRONT ARGUMENT "H" NEW "Z"));
    /* However they are written, and wherever they are. */
    expect_dubbo(DUBBO(FRONT ARGUMENT "M\x03map"
                                      "\x30\x0b"
                                      "Traceparent"
                                      "S\x00\x03"
                                      "old"
                                      "\x04"
                                      "path\x04"
                                      "Echo"
                                      "\x02"
                                      "b3"
                                      "\x01"
                                      "0"
                                      "\x07"
                                      "timeout"
                                      "\xcb\xb8"
                                      "Z"),
                 DUBBO(FRONT ARGUMENT "M\x03map"
                                      "\x04"
                                      "path\x04"
                                      "Echo"
                                      "\x07"
                                      "timeout"
                                      "\xcb\xb8" NEW "Z"));
}

/* Where no map ends the body, or it is in another serialization. */
static void test_attachments_that_cannot_be_read_stay(void **state)
{
    struct bytes *other = DUBBO(FRONT ARGUMENT "HZ"), *same = DUBBO(FRONT ARGUMENT "HZ");

    (void)state;
    expect_dubbo(DUBBO(FRONT ARGUMENT "HZ0"), DUBBO(FRONT ARGUMENT "HZ0"));
    expect_dubbo(DUBBO(FRONT ARGUMENT "N"), DUBBO(FRONT ARGUMENT "N"));
    expect_dubbo(DUBBO(FRONT ARGUMENT "H\x04path"), DUBBO(FRONT ARGUMENT "H\x04path"));
    expect_dubbo(DUBBO(FRONT), DUBBO(FRONT));
    other->data[2] = same->data[2] = 0xd7; /* fastjson2 */
    expect_dubbo(other, same);
}

/* ---- spans ---- */

static struct tracing tracing;
static const struct limits frames = {.frame_bytes = 1024};
static struct worker worker = {.tracing = &tracing, .limits = &frames};

static const struct field traced[] = {{TEXT("traceparent"), TEXT(TRACEPARENT)},
                                      {TEXT("tracestate"), TEXT("a=b")}};

static void set_tracing(enum dp_trace_form form)
{
    struct dp_tracing settings = {.forms = {form}};

    assert_true(tracing_set(&tracing, &settings));
}

static void test_what_a_span_knows(void **state)
{
    struct message request = {
        .fields = traced, .field_count = 2, .authority = TEXT("orders.test:8080")};
    struct dp_request record = {.attempts = 0};
    struct trace_context context;
    struct tracer tracer;
    struct span *span = NULL;

    (void)state;
    set_tracing(DP_TRACE_W3C);
    assert_true(tracer_open(&tracer));
    assert_ptr_equal(tracer_begin(&worker, &tracer, DP_HTTP1, &request, &record, &context, &span),
                     &context.fields);
    assert_non_null(span);
    assert_int_equal(record.trace_id[0], 0x4b);
    assert_memory_equal(record.span_id, context.span, sizeof record.span_id);
    assert_memory_equal(span->data.parent_id, "\x00\xf0\x67\xaa\x0b\xa9\x02\xb7", 8);
    assert_string_equal(span->data.authority, "orders.test:8080");
    assert_string_equal(span->data.state, "a=b");
    tracer_free(&tracer, span);
    tracer_close(&tracer);
}

static void test_what_is_not_traced(void **state)
{
    struct message request = {.fields = traced, .field_count = 2};
    struct dp_request record = {.attempts = 0}, untouched = record;
    struct trace_context context;
    struct tracer tracer;
    struct span *span = NULL;

    (void)state;
    assert_true(tracer_open(&tracer));
    set_tracing(0); /* nothing is */
    assert_null(tracer_begin(&worker, &tracer, DP_HTTP1, &request, &record, &context, &span));
    set_tracing(DP_TRACE_W3C);
    request.facts.connect = true;
    assert_null(tracer_begin(&worker, &tracer, DP_HTTP1, &request, &record, &context, &span));
    request.facts.connect = false;
    request.field_count = 0; /* no trace is begun */
    assert_null(tracer_begin(&worker, &tracer, DP_HTTP1, &request, &record, &context, &span));
    assert_null(span);
    assert_memory_equal(&record, &untouched, sizeof record);
    tracer_close(&tracer);
}

/* A frame would become longer than whoever gets it may take: it has a span, and says nothing. */
static void test_a_frame_that_is_full_stays_as_it_is(void **state)
{
    struct message request = {.fields = traced, .field_count = 2, .frame = {"", 1000}};
    struct dp_request record = {.attempts = 0};
    struct trace_context context;
    struct tracer tracer;
    struct span *span = NULL;

    (void)state;
    set_tracing(DP_TRACE_W3C);
    assert_true(tracer_open(&tracer));
    assert_null(tracer_begin(&worker, &tracer, DP_BOLT, &request, &record, &context, &span));
    assert_non_null(span);
    tracer_free(&tracer, span);
    tracer_close(&tracer);
}

static void test_spans_are_used_again(void **state)
{
    struct message request = {.fields = traced, .field_count = 2};
    struct dp_request record;
    struct trace_context context;
    struct tracer tracer;
    struct span *spans[100] = {NULL};

    (void)state;
    set_tracing(DP_TRACE_W3C);
    assert_true(tracer_open(&tracer));
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < COUNT(spans); i++) {
            spans[i] = NULL;
            tracer_begin(&worker, &tracer, DP_HTTP1, &request, &record, &context, &spans[i]);
            assert_non_null(spans[i]);
            assert_int_equal(spans[i]->data.authority[0], 0);
            memset(&spans[i]->data, 'x', sizeof spans[i]->data);
        }
        for (unsigned i = 0; i < COUNT(spans); i++)
            tracer_free(&tracer, spans[i]);
        tracer_free(&tracer, NULL);
    }
    tracer_close(&tracer);
}

/* Without memory the trace has a gap, and the request goes on. */
static void test_a_span_that_there_is_no_memory_for(void **state)
{
    struct message request = {.fields = traced, .field_count = 2};
    struct dp_request record;
    struct trace_context context;
    struct tracer tracer;
    struct span *span = NULL;

    (void)state;
    set_tracing(DP_TRACE_W3C);
    assert_true(tracer_open(&tracer));
    failing_set(1);
    assert_non_null(tracer_begin(&worker, &tracer, DP_HTTP1, &request, &record, &context, &span));
    assert_true(failing_take());
    assert_null(span);
    tracer_close(&tracer);
}

static void test_settings_are_checked(void **state)
{
    struct dp_tracing settings = {.forms = {DP_TRACE_W3C, 99}};

    (void)state;
    assert_false(tracing_set(&tracing, &settings));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_headers_are_replaced),
        cmocka_unit_test(test_headers_pass_as_they_are),
        cmocka_unit_test(test_a_header_section_is_replaced),
        cmocka_unit_test(test_a_header_section_that_takes_nothing),
        cmocka_unit_test(test_attachments_are_replaced),
        cmocka_unit_test(test_attachments_that_cannot_be_read_stay),
        cmocka_unit_test(test_what_a_span_knows),
        cmocka_unit_test(test_what_is_not_traced),
        cmocka_unit_test(test_a_frame_that_is_full_stays_as_it_is),
        cmocka_unit_test(test_spans_are_used_again),
        cmocka_unit_test(test_a_span_that_there_is_no_memory_for),
        cmocka_unit_test(test_settings_are_checked),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
