#include "frames.h"

#include "l7/checksum.h"

/* A frame as SOFABolt writes it; `version`: 1, or 0x21 and 0x22 for v2. */
struct frame {
    uint8_t version, type, codec, options;
    uint16_t command;
    uint32_t id;
    uint32_t timeout_or_status;
    const char *class_name;
    const struct bytes *header;
    const char *content;
};

static const struct frame a_request = {
    .version = 1,
    .type = 1,
    .codec = 1,
    .command = 1,
    .id = 0x01020304,
    .timeout_or_status = 3000,
    .class_name = "com.alipay.sofa.rpc.core.request.SofaRequest",
    .content = "content",
};
static const struct frame a_response = {
    .version = 1,
    .type = 0,
    .codec = 1,
    .command = 2,
    .id = 0x01020304,
    .class_name = "com.alipay.sofa.rpc.core.response.SofaResponse",
    .content = "content",
};

static void append_crc(struct bytes *bytes)
{
    uint32_t crc = ~0u; /* bit by bit, unlike the codec */

    for (size_t i = 0; i < bytes->size; i++) {
        crc ^= bytes->data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
    }
    append_number(bytes, ~crc, 4);
}

static struct bytes *make(struct frame frame)
{
    struct bytes *bytes = no_bytes();
    bool second = frame.version >> 4 == 2;

    append_number(bytes, second ? 2 : 1, 1);
    if (second)
        append_number(bytes, frame.version & 15, 1);
    append_number(bytes, frame.type, 1);
    append_number(bytes, frame.command, 2);
    append_number(bytes, 1, 1);
    append_number(bytes, frame.id, 4);
    append_number(bytes, frame.codec, 1);
    if (second)
        append_number(bytes, frame.options, 1);
    append_number(bytes, frame.timeout_or_status, frame.type == 0 ? 2 : 4);
    append_number(bytes, strlen(frame.class_name), 2);
    append_number(bytes, frame.header ? frame.header->size : 0, 2);
    append_number(bytes, strlen(frame.content), 4);
    append(bytes, frame.class_name, strlen(frame.class_name));
    if (frame.header)
        append(bytes, frame.header->data, frame.header->size);
    append(bytes, frame.content, strlen(frame.content));
    if (frame.version == 0x22 && frame.options & 1)
        append_crc(bytes);
    return bytes;
}

static void add_string(struct bytes *section, const char *string)
{
    if (!string) {
        append_number(section, UINT32_MAX, 4);
        return;
    }
    append_number(section, strlen(string), 4);
    append(section, string, strlen(string));
}

/* Names and values in turn; NULL is null. The count of both. */
static struct bytes *section_of(const char *const *strings, size_t count)
{
    struct bytes *section = no_bytes();

    for (size_t i = 0; i < count; i++)
        add_string(section, strings[i]);
    return section;
}

#define SECTION(...) \
    section_of((const char *const[]){__VA_ARGS__}, COUNT(((const char *const[]){__VA_ARGS__})))

static struct bytes *make_with(struct frame frame, struct bytes *section)
{
    struct bytes *bytes;

    frame.header = section;
    bytes = make(frame);
    free(section);
    return bytes;
}

static void assert_same_bytes(const struct bytes *one, const struct bytes *other)
{
    assert_int_equal(one->size, other->size);
    assert_memory_equal(one->data, other->data, one->size);
}

/* ---- requests ---- */

static void test_what_a_request_asks_for(void **state)
{
    struct bytes *bytes =
        make_with(a_request, SECTION("service", "Other:1.0", "sofa_head_target_service", "Echo:1.0",
                                     "uid", "", "sofa_head_method_name", "hello"));
    struct message message = decode_one(&codec_bolt, false, bytes);

    (void)state;
    assert_int_equal(message.kind, MESSAGE_REQUEST);
    assert_int_equal(message.id, 0x01020304);
    assert_text(message.service, "Echo:1.0");
    assert_text(message.method, "hello");
    assert_int_equal(message.timeout_ms, 3000);
    assert_int_equal(message.facts.version, 1);
    assert_int_equal(message.facts.serialization, 1);
    assert_int_equal(message.field_count, 4);
    assert_text(message.fields[2].name, "uid");
    assert_int_equal(message.fields[2].value.size, 0);
    assert_text(message.fields[3].value, "hello");
    free(bytes);
}

/* anthunder of old, MOSN, and whoever has only this one. */
static void test_the_service_may_be_in_the_other_header(void **state)
{
    struct bytes *bytes =
        make_with(a_request, SECTION("sofa_head_target_service", "", "service", "Echo:1.0"));
    struct message message = decode_one(&codec_bolt, false, bytes);

    (void)state;
    assert_text(message.service, "Echo:1.0");
    assert_int_equal(message.method.size, 0);
    free(bytes);
}

/* As the service itself reads them, into a map. */
static void test_the_last_header_of_a_name_counts_and_null_is_none(void **state)
{
    struct bytes *bytes = make_with(
        a_request, SECTION("sofa_head_target_service", "A:1.0", "sofa_head_target_service", "B:1.0",
                           "sofa_head_target_service", NULL, NULL, "x"));
    struct message message = decode_one(&codec_bolt, false, bytes);

    (void)state;
    assert_text(message.service, "B:1.0");
    assert_int_equal(message.field_count, 2);
    free(bytes);
}

static void test_a_request_without_headers(void **state)
{
    struct frame frame = a_request;
    struct bytes *bytes;
    struct message message;

    (void)state;
    frame.type = 2;
    frame.timeout_or_status = UINT32_MAX;
    bytes = make(frame);
    message = decode_one(&codec_bolt, false, bytes);
    assert_int_equal(message.kind, MESSAGE_ONEWAY);
    assert_int_equal(message.service.size, 0);
    assert_int_equal(message.field_count, 0);
    assert_int_equal(message.timeout_ms, 0);
    free(bytes);
}

static void test_more_headers_than_are_seen(void **state)
{
    struct bytes *section = no_bytes(), *bytes;
    struct message message;

    (void)state;
    for (int i = 0; i < MAX_FIELDS + 10; i++) {
        add_string(section, "name");
        add_string(section, "value");
    }
    add_string(section, "service");
    add_string(section, "Echo:1.0");
    bytes = make_with(a_request, section);
    message = decode_one(&codec_bolt, false, bytes);
    assert_int_equal(message.field_count, MAX_FIELDS);
    assert_text(message.service, "Echo:1.0");
    free(bytes);
}

static void test_requests_of_v2(void **state)
{
    static const uint8_t versions[] = {0x21, 0x22, 0x22}, options[] = {1, 0, 1};
    struct frame frame = a_request;

    (void)state;
    for (size_t i = 0; i < COUNT(versions); i++) {
        struct bytes *bytes;
        struct message message;

        frame.version = versions[i];
        frame.options = options[i];
        bytes = make_with(frame, SECTION("service", "Echo:1.0"));
        message = decode_one(&codec_bolt, false, bytes);
        assert_int_equal(message.kind, MESSAGE_REQUEST);
        assert_int_equal(message.id, 0x01020304);
        assert_int_equal(message.timeout_ms, 3000);
        assert_int_equal(message.facts.version, versions[i]);
        assert_int_equal(message.facts.options, options[i]);
        assert_text(message.service, "Echo:1.0");
        free(bytes);
    }
}

static void test_a_wrong_checksum_is_refused(void **state)
{
    struct frame frame = a_request;
    struct bytes *bytes;

    (void)state;
    frame.version = 0x22;
    frame.options = 1;
    bytes = make(frame);
    bytes->data[bytes->size - 10] ^= 1;
    assert_refused(&codec_bolt, false, bytes, "wrong checksum");
    free(bytes);
}

static void test_the_checksum_is_that_of_zlib(void **state)
{
    (void)state;
    assert_int_equal(crc32_of((const uint8_t *)"123456789", 9), 0xCBF43926);
    assert_int_equal(crc32_of((const uint8_t *)"", 0), 0);
}

static void test_heartbeats(void **state)
{
    struct frame frame = a_request;
    struct bytes *bytes;
    struct message message;

    (void)state;
    frame.command = 0;
    frame.class_name = frame.content = "";
    bytes = make(frame);
    message = decode_one(&codec_bolt, false, bytes);
    assert_int_equal(message.kind, MESSAGE_HEARTBEAT);
    assert_true(message.facts.heartbeat);
    free(bytes);
    frame.type = 0;
    frame.timeout_or_status = 0;
    bytes = make(frame);
    message = decode_one(&codec_bolt, true, bytes);
    assert_int_equal(message.kind, MESSAGE_HEARTBEAT_ANSWER);
    /* A client may answer one as well. */
    message = decode_one(&codec_bolt, false, bytes);
    assert_int_equal(message.kind, MESSAGE_HEARTBEAT_ANSWER);
    free(bytes);
}

/* ---- responses ---- */

static void test_how_a_response_went(void **state)
{
    struct frame frame = a_response;
    struct bytes *bytes = make(frame);
    struct message message = decode_one(&codec_bolt, true, bytes);

    (void)state;
    assert_int_equal(message.kind, MESSAGE_RESPONSE);
    assert_int_equal(message.status, 0);
    assert_true(message.succeeded);
    assert_false(message.service_failed);
    free(bytes);
    bytes = make_with(frame, SECTION("sofa_head_response_error", "true"));
    message = decode_one(&codec_bolt, true, bytes);
    assert_true(message.succeeded);
    assert_true(message.service_failed);
    free(bytes);
    frame.timeout_or_status = 2;
    bytes = make(frame);
    message = decode_one(&codec_bolt, true, bytes);
    assert_false(message.succeeded);
    assert_true(message.service_failed);
    free(bytes);
    frame.timeout_or_status = 0x10;
    bytes = make_with(frame, SECTION("sofa_head_response_error", "true"));
    message = decode_one(&codec_bolt, true, bytes);
    assert_int_equal(message.status, 0x10);
    assert_false(message.succeeded);
    assert_false(message.service_failed);
    free(bytes);
}

static void test_a_client_sends_no_answers(void **state)
{
    struct bytes *bytes = make(a_response);

    (void)state;
    assert_refused(&codec_bolt, false, bytes, "an answer where requests are expected");
    free(bytes);
}

/* SOFARegistry pushes, for example. */
static void test_a_server_may_send_requests(void **state)
{
    struct bytes *bytes = make(a_request);

    (void)state;
    assert_int_equal(decode_one(&codec_bolt, true, bytes).kind, MESSAGE_REQUEST);
    free(bytes);
}

/* ---- what is refused ---- */

static void test_wrong_first_bytes_are_refused_at_once(void **state)
{
    static const struct {
        const char *bytes;
        size_t size;
        const char *problem;
    } wrong[] = {
        {"\x00", 1, "not Bolt"},
        {"\x03", 1, "not Bolt"},
        {"GET /", 5, "not Bolt"},
        {"\x01\x03", 2, "unknown type of command"},
        {"\x01\x01\x01", 3, "unknown command"},
        {"\x01\x01\x00\x02", 4, "unknown command"},
        {"\x01\x00\x00\x01", 4, "unknown command"},
        {"\x02\x00", 2, "unknown version of Bolt v2"},
        {"\x02\x03", 2, "unknown version of Bolt v2"},
        {"\x02\x01\x03", 3, "unknown type of command"},
        {"\x02\x01\x01\x01", 4, "unknown command"},
        {"\x02\x01\x01\x00\x64", 5, "unknown command"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT(wrong); i++) {
        struct bytes *bytes = no_bytes();

        append(bytes, wrong[i].bytes, wrong[i].size);
        assert_refused(&codec_bolt, false, bytes, wrong[i].problem);
        free(bytes);
    }
}

/* What Java takes for negative, or what overflows in 32 bits. */
static void test_lengths_out_of_range(void **state)
{
    static const struct {
        size_t at;
        uint8_t bytes[4];
        size_t size;
        const char *problem;
    } wrong[] = {
        {14, {0x80, 0x00}, 2, "a length that is out of range"},
        {16, {0x80, 0x00}, 2, "a length that is out of range"},
        {18, {0xff, 0xff, 0xff, 0xff}, 4, "the frame is too long"},
        {18, {0xff, 0xff, 0xff, 0x00}, 4, "the frame is too long"},
        {18, {0x00, 0x02, 0x49, 0xf0}, 4, "the frame is too long"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT(wrong); i++) {
        struct bytes *bytes = make(a_request);

        memcpy(bytes->data + wrong[i].at, wrong[i].bytes, wrong[i].size);
        assert_refused(&codec_bolt, false, bytes, wrong[i].problem);
        free(bytes);
    }
}

static void test_the_longest_frame(void **state)
{
    static const struct limits exact = {.frame_bytes = 73}, less = {.frame_bytes = 72};
    struct bytes *bytes = make(a_request);
    struct decoder decoder = {.limits = &exact};
    struct message message;
    size_t consumed;

    (void)state;
    assert_int_equal(bytes->size, 73);
    assert_int_equal(codec_bolt.decode(&decoder, bytes->data, bytes->size, &consumed, &message),
                     CODEC_HEAD);
    decoder.limits = &less;
    assert_int_equal(codec_bolt.decode(&decoder, bytes->data, 22, &consumed, &message),
                     CODEC_ERROR);
    free(bytes);
}

static void test_malformed_header_sections(void **state)
{
    static const struct {
        const char *bytes;
        size_t size;
    } wrong[] = {
        {"\x00", 1},
        {"\x00\x00\x00\x01", 4},
        {"\x00\x00\x00\x01z", 5},
        {"\x00\x00\x00\x01z\x00\x00\x00\x02z", 10},
        {"\x7f\xff\xff\xffz\x00\x00\x00\x01z", 10},
    };

    (void)state;
    for (size_t i = 0; i < COUNT(wrong); i++) {
        struct bytes *section = no_bytes(), *bytes;

        append(section, wrong[i].bytes, wrong[i].size);
        bytes = make_with(a_request, section);
        assert_refused(&codec_bolt, false, bytes, "malformed header section");
        free(bytes);
    }
}

static void test_frames_one_behind_the_other(void **state)
{
    struct bytes *bytes = make(a_request), *second = make(a_request);
    struct decoder decoder = decoder_of(false);
    struct message message;
    size_t consumed, first = bytes->size;

    (void)state;
    append(bytes, second->data, second->size);
    append(bytes, second->data, 3);
    for (size_t at = 0; at < 2 * first; at += consumed) {
        assert_int_equal(
            codec_bolt.decode(&decoder, bytes->data + at, bytes->size - at, &consumed, &message),
            CODEC_HEAD);
        assert_int_equal(consumed, first);
    }
    assert_int_equal(codec_bolt.decode(&decoder, bytes->data + 2 * first, 3, &consumed, &message),
                     CODEC_MORE);
    assert_int_equal(codec_bolt.finish(&decoder, &message), CODEC_ERROR);
    free(second);
    free(bytes);
}

static void test_detection(void **state)
{
    static const struct {
        const char *bytes;
        size_t size;
        enum detection detection;
    } cases[] = {
        {"\x01", 1, DETECT_MORE},
        {"\x01\x01\x00", 3, DETECT_MORE},
        {"\x01\x01\x00\x01", 4, DETECT_YES},
        {"\x01\x02\x00\x01", 4, DETECT_YES},
        {"\x01\x01\x00\x00", 4, DETECT_YES},
        {"\x01\x00", 2, DETECT_NO},
        {"\x01\x01\x00\x02", 4, DETECT_NO},
        {"\x02", 1, DETECT_MORE},
        {"\x02\x01\x01\x00", 4, DETECT_MORE},
        {"\x02\x02\x01\x00\x01", 5, DETECT_YES},
        {"\x02\x02\x00", 3, DETECT_NO},
        {"G", 1, DETECT_NO},
        {"\xda\xbb", 2, DETECT_NO},
    };

    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++)
        assert_int_equal(codec_bolt.detect((const uint8_t *)cases[i].bytes, cases[i].size),
                         cases[i].detection);
}

/* ---- passing on ---- */

static void assert_passed_on_with_new_id(struct frame frame, bool response)
{
    struct bytes *bytes = make_with(frame, SECTION("service", "Echo:1.0")), *encoded, *expected;
    struct message message = decode_one(&codec_bolt, response, bytes);
    struct adjustment adjustment = {.id = 0xa0b0c0d0, .facts = {.version = frame.version}};

    encoded = encode(&codec_bolt, &message, &adjustment);
    frame.id = 0xa0b0c0d0;
    expected = make_with(frame, SECTION("service", "Echo:1.0"));
    assert_same_bytes(encoded, expected);
    free(expected);
    free(encoded);
    free(bytes);
}

static void test_nothing_but_the_id_changes(void **state)
{
    static const uint8_t versions[] = {1, 0x21, 0x22};

    (void)state;
    for (size_t i = 0; i < COUNT(versions); i++)
        for (uint8_t options = 0; options < 2; options++) {
            struct frame request = a_request, response = a_response;

            request.version = response.version = versions[i];
            request.options = response.options = versions[i] == 1 ? 0 : options;
            assert_passed_on_with_new_id(request, false);
            assert_passed_on_with_new_id(response, true);
        }
}

static void test_a_rewritten_header_section(void **state)
{
    static const struct field set[] = {{TEXT("app"), TEXT("mesh")}, {TEXT("new"), TEXT("")}};
    static const struct text removed[] = {TEXT("UID"), TEXT("absent")};
    struct rewrite rewrite = {.set = set,
                              .set_count = 2,
                              .remove = removed,
                              .remove_count = 2,
                              .original_destination = TEXT("x-original")};
    struct adjustment adjustment = {
        .id = 7, .rewrite = &rewrite, .original_destination = TEXT("10.0.0.1:80")};

    (void)state;
    for (int version = 1; version <= 0x22; version += version == 1 ? 0x20 : 1) {
        struct frame frame = a_request;
        struct bytes *bytes, *encoded, *expected;
        struct message message;

        frame.version = (uint8_t)version;
        frame.options = version > 1;
        bytes = make_with(frame, SECTION("app", "old", "uid", "1", "service", "Echo:1.0", NULL, "z",
                                         "App", "older", "x-original", "forged"));
        message = decode_one(&codec_bolt, false, bytes);
        encoded = encode(&codec_bolt, &message, &adjustment);
        frame.id = 7;
        expected = make_with(frame, SECTION("service", "Echo:1.0", NULL, "z", "app", "mesh", "new",
                                            "", "x-original", "10.0.0.1:80"));
        assert_same_bytes(encoded, expected);
        free(expected);
        free(encoded);
        free(bytes);
    }
}

/* Else a client could keep a header from being set by sending much of its own. */
static void test_what_rewriting_makes_too_long_is_not_passed_on(void **state)
{
    static const struct field set[] = {{TEXT("0123456789"), TEXT("0123456789")}};
    struct rewrite rewrite = {.set = set, .set_count = 1};
    struct adjustment adjustment = {.rewrite = &rewrite};
    struct bytes *section = no_bytes(), *bytes;
    struct encoder encoder = {0};
    struct message message;
    uint8_t *to = malloc(100000);

    (void)state;
    append_number(section, 1, 4);
    append(section, "a", 1);
    append_number(section, INT16_MAX - 9, 4);
    section->size += INT16_MAX - 9;
    bytes = make_with(a_request, section);
    message = decode_one(&codec_bolt, false, bytes);
    assert_int_equal(codec_bolt.encode(&encoder, &message, &adjustment, to, 100000), 0);
    free(to);
    free(bytes);
}

/* On a shared connection SOFABolt answers in the protocol of the first request on it. */
static void test_an_answer_is_in_the_protocol_of_its_request(void **state)
{
    static const uint8_t versions[] = {1, 0x21, 0x22};

    (void)state;
    for (size_t from = 0; from < COUNT(versions); from++)
        for (size_t to = 0; to < COUNT(versions); to++) {
            struct frame frame = a_response;
            struct adjustment adjustment = {
                .id = 9, .facts = {.version = versions[to], .options = versions[to] > 1}};
            struct bytes *bytes, *encoded, *expected;
            struct message message;

            frame.version = versions[from];
            frame.options = versions[from] > 1;
            bytes = make_with(frame, SECTION("a", "b"));
            message = decode_one(&codec_bolt, true, bytes);
            encoded = encode(&codec_bolt, &message, &adjustment);
            frame.id = 9;
            if ((versions[from] == 1) != (versions[to] == 1)) {
                frame.version = versions[to];
                frame.options = versions[to] > 1;
            }
            expected = make_with(frame, SECTION("a", "b"));
            assert_same_bytes(encoded, expected);
            free(expected);
            free(encoded);
            free(bytes);
        }
}

/* ---- frames of our own ---- */

static void test_answers_of_our_own(void **state)
{
    static const struct {
        enum dp_flag flag;
        uint32_t status;
    } cases[] = {
        {DP_FLAG_NO_ROUTE, 6},
        {DP_FLAG_NO_ENDPOINT, 0x10},
        {DP_FLAG_CONNECT_FAILED, 0x10},
        {DP_FLAG_CONNECT_TIMEOUT, 0x10},
        {DP_FLAG_TIMEOUT, 7},
        {DP_FLAG_UPSTREAM_RESET, 0x10},
        {DP_FLAG_OVERLOAD, 4},
        {DP_FLAG_MALFORMED_REQUEST, 9},
        {DP_FLAG_MALFORMED_RESPONSE, 9},
        {DP_FLAG_RATE_LIMITED, 4},
        {DP_FLAG_FAULT_ABORT, 0x10},
        {DP_FLAG_DRAIN_LIMIT, 0x10},
    };
    static const uint8_t versions[] = {1, 0x21, 0x22};

    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        uint8_t version = versions[i % COUNT(versions)];
        struct facts facts = {.version = version, .serialization = 11, .options = version > 1};
        uint32_t status = 99;
        struct rejection rejection = {.flag = cases[i].flag, .status = &status};
        struct bytes *bytes = no_bytes();
        struct message message;

        bytes->size = codec_bolt.reject(&facts, 5, &rejection, bytes->data, sizeof bytes->data);
        assert_int_equal(status, cases[i].status);
        message = decode_one(&codec_bolt, true, bytes);
        assert_int_equal(message.status, status);
        assert_int_equal(message.id, 5);
        assert_int_equal(bytes->data[0], version == 1 ? 1 : 2);
        assert_int_equal(bytes->data[version == 1 ? 9 : 10], 11);
        assert_non_null(memmem(bytes->data, bytes->size, a_response.class_name, 46));
        assert_int_equal(codec_bolt.reject(&facts, 5, &rejection, bytes->data, bytes->size - 1), 0);
        rejection.own_status = 2;
        codec_bolt.reject(&facts, 5, &rejection, bytes->data, sizeof bytes->data);
        assert_int_equal(status, 2);
        free(bytes);
    }
}

static void test_heartbeats_of_our_own(void **state)
{
    static const uint8_t versions[] = {0, 1, 0x21, 0x22};

    (void)state;
    for (size_t i = 0; i < COUNT(versions); i++) {
        struct facts facts = {.version = versions[i], .options = versions[i] > 1};
        struct bytes *bytes = no_bytes();
        struct message message;

        bytes->size = codec_bolt.heartbeat(&facts, 8, bytes->data, sizeof bytes->data);
        message = decode_one(&codec_bolt, false, bytes);
        assert_int_equal(message.kind, MESSAGE_HEARTBEAT);
        assert_int_equal(message.timeout_ms, 0);
        assert_int_equal(message.facts.version, versions[i] ? versions[i] : 1);
        bytes->size = codec_bolt.answer_heartbeat(&message, bytes->data + 100, 100);
        memmove(bytes->data, bytes->data + 100, bytes->size);
        message = decode_one(&codec_bolt, true, bytes);
        assert_int_equal(message.kind, MESSAGE_HEARTBEAT_ANSWER);
        assert_int_equal(message.id, 8);
        assert_true(message.succeeded);
        free(bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_a_request_asks_for),
        cmocka_unit_test(test_the_service_may_be_in_the_other_header),
        cmocka_unit_test(test_the_last_header_of_a_name_counts_and_null_is_none),
        cmocka_unit_test(test_a_request_without_headers),
        cmocka_unit_test(test_more_headers_than_are_seen),
        cmocka_unit_test(test_requests_of_v2),
        cmocka_unit_test(test_a_wrong_checksum_is_refused),
        cmocka_unit_test(test_the_checksum_is_that_of_zlib),
        cmocka_unit_test(test_heartbeats),
        cmocka_unit_test(test_how_a_response_went),
        cmocka_unit_test(test_a_client_sends_no_answers),
        cmocka_unit_test(test_a_server_may_send_requests),
        cmocka_unit_test(test_wrong_first_bytes_are_refused_at_once),
        cmocka_unit_test(test_lengths_out_of_range),
        cmocka_unit_test(test_the_longest_frame),
        cmocka_unit_test(test_malformed_header_sections),
        cmocka_unit_test(test_frames_one_behind_the_other),
        cmocka_unit_test(test_detection),
        cmocka_unit_test(test_nothing_but_the_id_changes),
        cmocka_unit_test(test_a_rewritten_header_section),
        cmocka_unit_test(test_what_rewriting_makes_too_long_is_not_passed_on),
        cmocka_unit_test(test_an_answer_is_in_the_protocol_of_its_request),
        cmocka_unit_test(test_answers_of_our_own),
        cmocka_unit_test(test_heartbeats_of_our_own),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
