#include "frames.h"

enum {
    REQUEST = 0xc2, /* two-way, Hessian 2 */
    ONEWAY = 0x82,
    RESPONSE = 0x02,
    EVENT = 0x20,
};

#define ID 0x0102030405060708

static struct bytes *make(uint8_t flags, uint8_t status, const void *body, size_t size)
{
    struct bytes *bytes = no_bytes();

    append_number(bytes, 0xdabb, 2);
    append_number(bytes, flags, 1);
    append_number(bytes, status, 1);
    append_number(bytes, ID, 8);
    append_number(bytes, size, 4);
    append(bytes, body, size);
    return bytes;
}

#define MAKE(flags, status, body) make((flags), (status), (body), sizeof(body) - 1)

/* As Dubbo 3.3 writes it, of Echo.hello(String): behind the descriptor, the argument and the
 * attachments. */
#define FRONT \
    "\x05"    \
    "2.0.2"   \
    "\x04"    \
    "Echo"    \
    "\x05"    \
    "1.0.0"   \
    "\x05"    \
    "hello"
#define STRING_PARAMETER \
    "\x12"               \
    "Ljava/lang/String;"

#define REQUEST_OF(rest) MAKE(REQUEST, 0, FRONT rest)

static struct message decode_request(struct bytes *bytes)
{
    return decode_one(&codec_dubbo, false, bytes);
}

/* ---- requests ---- */

static void test_what_a_request_asks_for(void **state)
{
    struct bytes *bytes = REQUEST_OF(STRING_PARAMETER "\x02hi"
                                                      "H\x04path\x04"
                                                      "Echo"
                                                      "\x09interface\x04"
                                                      "Echo"
                                                      "\x07timeout\x04"
                                                      "3000"
                                                      "\x05group\x04"
                                                      "blue"
                                                      "Z");
    struct message message = decode_request(bytes);

    (void)state;
    assert_int_equal(message.kind, MESSAGE_REQUEST);
    assert_int_equal(message.id, ID);
    assert_text(message.service, "Echo");
    assert_text(message.version, "1.0.0");
    assert_text(message.method, "hello");
    assert_text(message.group, "blue");
    assert_int_equal(message.timeout_ms, 3000);
    assert_int_equal(message.facts.serialization, 2);
    assert_int_equal(message.field_count, 4);
    assert_text(message.fields[1].name, "interface");
    assert_text(message.fields[3].value, "blue");
    free(bytes);
}

static void test_arguments_are_skipped_whatever_they_are(void **state)
{
    /* (int, Object[][], Bean, boolean): an object, whose class is known to the attachments too. */
    struct bytes *bytes = REQUEST_OF("\x1eI[[Ljava/lang/Object;Lp/Bean;Z"
                                     "\x90"
                                     "\x58\x91\x57\x7aNTZ"
                                     "C\x06p.Bean\x92\x01x\x01y\x60\xe0\x01z"
                                     "T"
                                     "H\x03one\x60NN\x05group\x01g"
                                     "Z");
    struct message message = decode_request(bytes);

    (void)state;
    assert_text(message.group, "g");
    assert_int_equal(message.field_count, 1);
    free(bytes);
}

static void test_attachments_of_any_kind(void **state)
{
    struct bytes *bytes = REQUEST_OF("\x00"
                                     "M\x07some.Ma"
                                     "\x07timeout\xcb\xe8"
                                     "\x90\x05group"
                                     "N\x01n"
                                     "\x05groupN"
                                     "\x05other\x57\x05groupZ"
                                     "\x05group\x01g"
                                     "Z");
    struct message message = decode_request(bytes);

    (void)state;
    assert_int_equal(message.timeout_ms, 1000);
    assert_text(message.group, "g");
    assert_int_equal(message.field_count, 1);
    free(bytes);
}

static void test_timeouts_that_are_none(void **state)
{
    static const char *const values[] = {"\x00",
                                         "\x02-1",
                                         "\x03"
                                         "1.5",
                                         "\x8f",
                                         "\x0b"
                                         "10000000000",
                                         "\xe0",
                                         "\x02 1"};

    (void)state;
    for (size_t i = 0; i < COUNT(values); i++) {
        struct bytes *body = no_bytes(), *bytes;

        APPEND(body, FRONT "\x00H\x07timeout");
        append(body, values[i], i == 0 ? 1 : strlen(values[i]));
        APPEND(body, "Z");
        bytes = make(REQUEST, 0, body->data, body->size);
        assert_int_equal(decode_request(bytes).timeout_ms, 0);
        free(bytes);
        free(body);
    }
}

static void test_a_version_that_is_null(void **state)
{
    struct bytes *bytes = MAKE(REQUEST, 0,
                               "\x05"
                               "2.0.2"
                               "\x04"
                               "EchoN\x05hello\x00HZ");
    struct message message = decode_request(bytes);

    (void)state;
    assert_text(message.service, "Echo");
    assert_int_equal(message.version.size, 0);
    assert_text(message.method, "hello");
    free(bytes);
}

/* What stands in front is known all the same, and the frame is passed on. */
static void test_a_request_whose_rest_cannot_be_read(void **state)
{
    static const char *const rests[] = {
        "",
        STRING_PARAMETER "\x05hi", /* cut off */
        STRING_PARAMETER "E"
                         "H\x05group\x01gZ", /* no value */
        "\x02IX"
        "\x90\x90"
        "H\x05group\x01gZ", /* no descriptor */
        "\x02[["
        "\x90"
        "H\x05group\x01gZ",
        "\x02Lx"
        "\x90"
        "H\x05group\x01gZ",
        "\x01I"
        "\x90"
        "H\x05group\x01g\x07timeout\x01"
        "5",
        "\x01I"
        "\x90"
        "H\x05group\x01g"
        "\x01z",
        "\x01I"
        "\x90"
        "N",
    };

    (void)state;
    for (size_t i = 0; i < COUNT(rests); i++) {
        struct bytes *body = no_bytes(), *bytes;
        struct message message;

        APPEND(body, FRONT);
        append(body, rests[i], strlen(rests[i]));
        bytes = make(REQUEST, 0, body->data, body->size);
        message = decode_request(bytes);
        assert_int_equal(message.kind, MESSAGE_REQUEST);
        assert_text(message.service, "Echo");
        assert_text(message.method, "hello");
        assert_int_equal(message.group.size, 0);
        assert_int_equal(message.timeout_ms, 0);
        assert_int_equal(message.field_count, 0);
        free(bytes);
        free(body);
    }
}

static void test_a_request_that_cannot_be_read_at_all(void **state)
{
    static const char *const bodies[] = {
        "",
        "\x05"
        "2.0.2",
        "\x05"
        "2.0.2\x04"
        "Echo\x05"
        "1.0",
        "\x90\x90\x90\x90\x90",
        "\x05"
        "2.0.2\x04"
        "Echo\x05"
        "1.0.0\x90",
    };

    (void)state;
    for (size_t i = 0; i < COUNT(bodies); i++) {
        struct bytes *bytes = make(REQUEST, 0, bodies[i], strlen(bodies[i]));
        struct message message = decode_request(bytes);

        assert_int_equal(message.kind, MESSAGE_REQUEST);
        assert_int_equal(message.service.size, 0);
        assert_int_equal(message.version.size, 0);
        assert_int_equal(message.method.size, 0);
        free(bytes);
    }
}

/* 23: fastjson2. */
static void test_a_request_in_another_serialization(void **state)
{
    struct bytes *bytes = MAKE(0xc0 | 23, 0, FRONT "\x00HZ");
    struct message message = decode_request(bytes);

    (void)state;
    assert_int_equal(message.kind, MESSAGE_REQUEST);
    assert_int_equal(message.facts.serialization, 23);
    assert_int_equal(message.service.size, 0);
    free(bytes);
}

static void test_a_request_that_wants_no_answer(void **state)
{
    struct bytes *bytes = MAKE(ONEWAY, 0, FRONT "\x00HZ");

    (void)state;
    assert_int_equal(decode_request(bytes).kind, MESSAGE_ONEWAY);
    free(bytes);
}

/* ---- responses ---- */

static void test_how_a_response_went(void **state)
{
    static const struct {
        uint8_t flags, status;
        const char *body;
        bool succeeded, service_failed;
    } cases[] = {
        {RESPONSE, 20, "\x94NHZ", true, false}, {RESPONSE, 20, "\x91N", true, false},
        {RESPONSE, 20, "\x92", true, false},    {RESPONSE, 20, "\x95HZ", true, false},
        {RESPONSE, 20, "\x90N", true, true},    {RESPONSE, 20, "\x93NHZ", true, true},
        {RESPONSE, 20, "", true, false},        {RESPONSE, 80, "\x93", false, false},
        {RESPONSE, 31, "\x01z", false, false},  {23, 20, "\x93", true, false},
    };

    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct bytes *bytes =
            make(cases[i].flags, cases[i].status, cases[i].body, strlen(cases[i].body));
        struct message message = decode_one(&codec_dubbo, true, bytes);

        assert_int_equal(message.kind, MESSAGE_RESPONSE);
        assert_int_equal(message.id, ID);
        assert_int_equal(message.status, cases[i].status);
        assert_int_equal(message.succeeded, cases[i].succeeded);
        assert_int_equal(message.service_failed, cases[i].service_failed);
        free(bytes);
    }
}

static void test_a_client_sends_no_answers(void **state)
{
    struct bytes *bytes = MAKE(RESPONSE, 20, "\x94NHZ");

    (void)state;
    assert_refused(&codec_dubbo, false, bytes, "an answer where requests are expected");
    free(bytes);
}

/* ---- events ---- */

static void assert_answered(uint8_t flags, const char *body, size_t size)
{
    struct bytes *bytes = make(flags, 0, body, size), *answer = no_bytes(), *expected;
    struct message message = decode_one(&codec_dubbo, false, bytes);

    assert_int_equal(message.kind, MESSAGE_HEARTBEAT);
    assert_true(message.facts.heartbeat);
    assert_false(message.last);
    answer->size = codec_dubbo.answer_heartbeat(&message, answer->data, sizeof answer->data);
    expected = make(EVENT | (flags & 0x1f), 20, body, size);
    assert_int_equal(answer->size, expected->size);
    assert_memory_equal(answer->data, expected->data, expected->size);
    assert_int_equal(codec_dubbo.answer_heartbeat(&message, answer->data, expected->size - 1), 0);
    message = decode_one(&codec_dubbo, true, expected);
    assert_int_equal(message.kind, MESSAGE_HEARTBEAT_ANSWER);
    free(expected);
    free(answer);
    free(bytes);
}

static void test_heartbeats_are_answered_in_their_own_form(void **state)
{
    (void)state;
    assert_answered(REQUEST | EVENT, "N", 1);
    assert_answered(0xc0 | EVENT | 23, "\x91\xaf", 2);
    assert_answered(0xc0 | EVENT | 8, "\x00", 1);
    assert_answered(0xc0 | EVENT | 22, "", 0);
}

/* A provider says so before it goes. */
static void test_an_event_that_wants_no_answer(void **state)
{
    struct bytes *bytes = MAKE(ONEWAY | EVENT, 0, "\x01R");
    struct message message = decode_one(&codec_dubbo, true, bytes);
    uint8_t to[100];

    (void)state;
    assert_int_equal(message.kind, MESSAGE_HEARTBEAT);
    assert_true(message.last);
    assert_int_equal(codec_dubbo.answer_heartbeat(&message, to, sizeof to), 0);
    free(bytes);
}

static void test_long_events_are_refused(void **state)
{
    uint8_t body[65] = {0};
    struct bytes *bytes = make(REQUEST | EVENT, 0, body, sizeof body);

    (void)state;
    assert_refused(&codec_dubbo, false, bytes, "the event is too long");
    free(bytes);
    bytes = make(RESPONSE | EVENT, 20, body, sizeof body);
    assert_refused(&codec_dubbo, true, bytes, "the event is too long");
    free(bytes);
}

/* ---- frames ---- */

static void test_wrong_first_bytes_are_refused_at_once(void **state)
{
    static const char *const wrong[] = {"G", "\xbb", "\xda\xba", "GET / HTTP/1.1\r\n\r\n"};

    (void)state;
    for (size_t i = 0; i < COUNT(wrong); i++) {
        struct bytes *bytes = no_bytes();

        append(bytes, wrong[i], strlen(wrong[i]));
        assert_refused(&codec_dubbo, false, bytes, "not Dubbo");
        free(bytes);
    }
}

static void test_lengths_out_of_range(void **state)
{
    static const uint32_t wrong[] = {150000 - 15, INT32_MAX, 0x80000000, UINT32_MAX - 15,
                                     UINT32_MAX};

    (void)state;
    for (size_t i = 0; i < COUNT(wrong); i++) {
        struct bytes *bytes = MAKE(REQUEST, 0, "");

        bytes->size -= 4;
        append_number(bytes, wrong[i], 4);
        assert_refused(&codec_dubbo, false, bytes, "the frame is too long");
        free(bytes);
    }
}

static void test_long_frames(void **state)
{
    struct bytes *body = no_bytes(), *bytes;
    struct message message;

    (void)state;
    APPEND(body, FRONT "\x02[BA\xff\xff");
    body->size += 65535;
    APPEND(body, "B\xff\xff");
    body->size += 65535;
    APPEND(body, "H\x05group\x01gZ");
    bytes = make(REQUEST, 0, body->data, body->size);
    message = decode_request(bytes);
    assert_text(message.group, "g");
    free(bytes);
    free(body);
}

static void test_detection(void **state)
{
    static const struct {
        const char *bytes;
        size_t size;
        enum detection detection;
    } cases[] = {
        {"\xda", 1, DETECT_MORE},           {"\xda\xbb", 2, DETECT_MORE},
        {"\xda\xbb\xc2", 3, DETECT_YES},    {"\xda\xbb\xe2", 3, DETECT_YES},
        {"\xda\xbb\x02", 3, DETECT_NO},     {"\xda\xbc", 2, DETECT_NO},
        {"\x01\x01\x00\x01", 4, DETECT_NO}, {"G", 1, DETECT_NO},
    };

    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++)
        assert_int_equal(codec_dubbo.detect((const uint8_t *)cases[i].bytes, cases[i].size),
                         cases[i].detection);
}

static void test_nothing_but_the_id_changes(void **state)
{
    struct bytes *bytes = REQUEST_OF("\x00HZ"), *encoded;
    struct message message = decode_request(bytes);
    struct adjustment adjustment = {.id = 0xa1a2a3a4a5a6a7a8};

    (void)state;
    encoded = encode(&codec_dubbo, &message, &adjustment);
    assert_int_equal(encoded->size, bytes->size);
    assert_memory_equal(encoded->data, bytes->data, 4);
    assert_memory_equal(encoded->data + 4, "\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8", 8);
    assert_memory_equal(encoded->data + 12, bytes->data + 12, bytes->size - 12);
    free(encoded);
    free(bytes);
}

static void test_answers_of_our_own(void **state)
{
    static const struct {
        enum dp_flag flag;
        uint32_t status;
    } cases[] = {
        {DP_FLAG_NO_ROUTE, 60},
        {DP_FLAG_NO_ENDPOINT, 80},
        {DP_FLAG_CONNECT_FAILED, 80},
        {DP_FLAG_CONNECT_TIMEOUT, 80},
        {DP_FLAG_TIMEOUT, 31},
        {DP_FLAG_UPSTREAM_RESET, 35},
        {DP_FLAG_OVERLOAD, 100},
        {DP_FLAG_MALFORMED_REQUEST, 40},
        {DP_FLAG_MALFORMED_RESPONSE, 50},
        {DP_FLAG_RATE_LIMITED, 100},
        {DP_FLAG_FAULT_ABORT, 80},
        {DP_FLAG_DRAIN_LIMIT, 80},
    };

    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct facts facts = {.serialization = 23};
        uint32_t status = 0;
        struct rejection rejection = {
            .flag = cases[i].flag, .status = &status, .reason = TEXT("no endpoint")};
        struct bytes *bytes = no_bytes();
        struct message message;

        bytes->size = codec_dubbo.reject(&facts, ID, &rejection, bytes->data, sizeof bytes->data);
        assert_int_equal(status, cases[i].status);
        message = decode_one(&codec_dubbo, true, bytes);
        assert_int_equal(message.kind, MESSAGE_RESPONSE);
        assert_int_equal(message.status, status);
        assert_int_equal(message.id, ID);
        assert_int_equal(bytes->data[2], 2);
        assert_memory_equal(bytes->data + 16, "\x30\x0bno endpoint", 13);
        assert_int_equal(bytes->size, 29);
        assert_int_equal(codec_dubbo.reject(&facts, ID, &rejection, bytes->data, 28), 0);
        rejection.reason = TEXT("");
        bytes->size = codec_dubbo.reject(&facts, ID, &rejection, bytes->data, sizeof bytes->data);
        assert_memory_equal(bytes->data + 18, "sidecar: ", 9);
        assert_in_range(bytes->data[17], 12, bytes->size - 18);
        rejection.own_status = 70;
        codec_dubbo.reject(&facts, ID, &rejection, bytes->data, sizeof bytes->data);
        assert_int_equal(status, 70);
        assert_int_equal(bytes->data[3], 70);
        free(bytes);
    }
}

static void test_heartbeats_of_our_own(void **state)
{
    struct facts facts = {0};
    struct bytes *bytes = no_bytes(), *expected = MAKE(REQUEST | EVENT, 0, "N");

    (void)state;
    bytes->size = codec_dubbo.heartbeat(&facts, ID, bytes->data, sizeof bytes->data);
    assert_int_equal(bytes->size, expected->size);
    assert_memory_equal(bytes->data, expected->data, expected->size);
    free(expected);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_a_request_asks_for),
        cmocka_unit_test(test_arguments_are_skipped_whatever_they_are),
        cmocka_unit_test(test_attachments_of_any_kind),
        cmocka_unit_test(test_timeouts_that_are_none),
        cmocka_unit_test(test_a_version_that_is_null),
        cmocka_unit_test(test_a_request_whose_rest_cannot_be_read),
        cmocka_unit_test(test_a_request_that_cannot_be_read_at_all),
        cmocka_unit_test(test_a_request_in_another_serialization),
        cmocka_unit_test(test_a_request_that_wants_no_answer),
        cmocka_unit_test(test_how_a_response_went),
        cmocka_unit_test(test_a_client_sends_no_answers),
        cmocka_unit_test(test_heartbeats_are_answered_in_their_own_form),
        cmocka_unit_test(test_an_event_that_wants_no_answer),
        cmocka_unit_test(test_long_events_are_refused),
        cmocka_unit_test(test_wrong_first_bytes_are_refused_at_once),
        cmocka_unit_test(test_lengths_out_of_range),
        cmocka_unit_test(test_long_frames),
        cmocka_unit_test(test_detection),
        cmocka_unit_test(test_nothing_but_the_id_changes),
        cmocka_unit_test(test_answers_of_our_own),
        cmocka_unit_test(test_heartbeats_of_our_own),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
