#include "unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "l7/http1.h"

/* What a connection brought, in words, with pieces of bodies put together. */
struct story {
    char text[8192];
    size_t size;
    bool in_data;
};

static const struct limits limits = {.line_bytes = 256, .head_bytes = 1024, .fields = 16};

static void tell(struct story *story, const char *text, size_t size)
{
    assert_true(story->size + size < sizeof story->text);
    if (size > 0)
        memcpy(story->text + story->size, text, size);
    story->size += size;
    story->text[story->size] = 0;
}

static void tell_text(struct story *story, const char *before, struct text text)
{
    tell(story, before, strlen(before));
    tell(story, text.at, text.size);
}

static void tell_word(struct story *story, const char *word)
{
    tell(story, word, strlen(word));
}

static void tell_fields(struct story *story, const struct message *message)
{
    for (uint32_t i = 0; i < message->field_count; i++) {
        tell_text(story, i > 0 ? ", " : " {", message->fields[i].name);
        tell_text(story, "=", message->fields[i].value);
    }
    tell_word(story, message->field_count > 0 ? "}" : "");
}

static void tell_size(struct story *story, const struct message *message)
{
    char number[32];

    snprintf(number, sizeof number, " %lld", (long long)message->body_size);
    tell_word(story, number);
    tell_word(story, message->until_close ? " until-close" : "");
    tell_word(story, message->last ? " last" : "");
}

static void tell_request(struct story *story, const struct message *message)
{
    const struct facts *facts = &message->facts;

    tell_text(story, "", message->method);
    tell_text(story, " ", message->path);
    tell_text(story, " @", message->authority);
    tell_text(story, " @", message->service);
    tell_size(story, message);
    tell_word(story, facts->http10 ? " 1.0" : "");
    tell_word(story, facts->head ? " head" : "");
    tell_word(story, facts->upgrade ? " upgrade" : "");
    tell_word(story, message->expects_continue ? " continue" : "");
    assert_int_equal(facts->keep_alive, !message->last);
}

static void tell_response(struct story *story, const struct message *message)
{
    char status[32];

    snprintf(status, sizeof status, "%s%u ", message->kind == MESSAGE_INTERIM ? "interim " : "",
             message->status);
    tell_word(story, status);
    tell_text(story, "", message->reason);
    tell_size(story, message);
    tell_word(story, message->upgraded ? " upgraded" : "");
    assert_int_equal(message->succeeded, message->status < 400);
}

static void tell_event(struct story *story, enum codec_event event, const struct message *message)
{
    char status[32];

    if (event == CODEC_DATA) {
        tell_text(story, story->in_data ? "" : "'", message->data);
        story->in_data = true;
        return;
    }
    tell_word(story, story->in_data ? "'\n" : "");
    story->in_data = false;
    switch (event) {
    case CODEC_HEAD:
        if (message->kind == MESSAGE_REQUEST)
            tell_request(story, message);
        else
            tell_response(story, message);
        tell_fields(story, message);
        tell_word(story, "\n");
        break;
    case CODEC_END:
        tell_word(story, "end");
        tell_fields(story, message);
        tell_word(story, "\n");
        break;
    default:
        snprintf(status, sizeof status, "error %u: ", message->http_status);
        tell_word(story, status);
        tell_word(story, message->problem);
        tell_word(story, "\n");
        break;
    }
}

static bool is_over(enum codec_event event)
{
    return event == CODEC_ERROR;
}

/* Decodes as far as it goes, from copies of exactly what there is, so that a sanitizer sees who
 * reads on. Returns how much was consumed. */
static size_t decode_some(struct decoder *decoder, const char *data, size_t size,
                          struct story *story, enum codec_event *event)
{
    size_t all = 0, consumed;
    struct message message;

    do {
        uint8_t *copy = malloc(size - all + 1);

        memcpy(copy + 1, data + all, size - all);
        *event = codec_http1.decode(decoder, copy + 1, size - all, &consumed, &message);
        if (*event != CODEC_MORE)
            tell_event(story, *event, &message);
        free(copy);
        all += consumed;
        assert_true(all <= size);
    } while (*event != CODEC_MORE && !is_over(*event) && !message.upgraded);
    return all;
}

/* The story of a connection that brings the data in pieces of that size, and ends. */
static void read_in_pieces(struct decoder decoder, const char *data, size_t size, size_t piece,
                           struct story *story)
{
    enum codec_event event = CODEC_MORE;
    struct message message;
    size_t from = 0, to = 0;

    *story = (struct story){.size = 0};
    while (to < size && !is_over(event)) {
        to = to + piece < size ? to + piece : size;
        from += decode_some(&decoder, data + from, to - from, story, &event);
    }
    if (is_over(event))
        return;
    event = codec_http1.finish(&decoder, &message);
    if (event != CODEC_MORE)
        tell_event(story, event, &message);
}

static struct decoder decoder_for(const struct facts *facts)
{
    struct decoder decoder = {.limits = &limits, .response = facts != NULL};

    if (facts)
        codec_http1.expect(&decoder, facts);
    return decoder;
}

/* Any split tells the same. facts: of the request that is answered; NULL: these are requests. */
static void expect_story_of(const struct facts *facts, const char *data, size_t size,
                            const char *expected)
{
    static struct story story;

    for (size_t piece = 1; piece < size; piece += piece < 40 ? 1 : 17) {
        read_in_pieces(decoder_for(facts), data, size, piece, &story);
        assert_string_equal(story.text, expected);
    }
    read_in_pieces(decoder_for(facts), data, size, size, &story);
    assert_string_equal(story.text, expected);
}

static void expect_requests(const char *data, const char *expected)
{
    expect_story_of(NULL, data, strlen(data), expected);
}

static void expect_responses(struct facts facts, const char *data, const char *expected)
{
    expect_story_of(&facts, data, strlen(data), expected);
}

/* ---- requests ---- */

static void test_a_request_is_told_by_its_parts(void **state)
{
    (void)state;
    expect_requests("GET /a?b=c HTTP/1.1\r\nHost: x.y:80\r\nA:  b c\t \r\nEmpty:\r\n\r\n",
                    "GET /a?b=c @x.y:80 @x.y 0 {Host=x.y:80, A=b c, Empty=}\nend\n");
    expect_requests("GET / HTTP/1.1\r\nhost: [::1]:80\r\n\r\n",
                    "GET / @[::1]:80 @[::1] 0 {host=[::1]:80}\nend\n");
    expect_requests("HEAD / HTTP/1.1\r\nHost: x\r\nConnection: Close\r\n\r\n",
                    "HEAD / @x @x 0 last head {Host=x, Connection=Close}\nend\n");
}

static void test_one_request_follows_the_other(void **state)
{
    (void)state;
    expect_requests("POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
                    "POST /2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n"
                    "3\r\nabc\r\n0A;a;b=c;d=\"e\\\"f\"\r\n0123456789\r\n0\r\nT: u\r\n\r\n"
                    "GET /3 HTTP/1.1\r\nHost: x\r\n\r\n",
                    "POST /1 @x @x 3 {Host=x, Content-Length=3}\n'abc'\nend\n"
                    "POST /2 @x @x -1 {Host=x, Transfer-Encoding=Chunked}\n'abc0123456789'\n"
                    "end {T=u}\n"
                    "GET /3 @x @x 0 {Host=x}\nend\n");
}

static void test_nothing_is_read_behind_the_last_request(void **state)
{
    (void)state;
    expect_requests("POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1\r\n\r\n1"
                    "GET / HTTP/1.1\r\nHost: x\r\n\r\n\n",
                    "POST / @x @x 1 last {Host=x, Connection=close, Content-Length=1}\n'1'\nend\n");
}

static void test_one_empty_line_may_come_before_a_request(void **state)
{
    (void)state;
    expect_requests("\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n\r\n", "GET / @x @x 0 {Host=x}\nend\n");
    expect_requests("\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", "error 400: not a method\n");
}

static void test_what_a_connection_cuts_off_is_told(void **state)
{
    (void)state;
    expect_requests("GET / HT", "error 400: cut off\n");
    expect_requests("GET / HTTP/1.1\r\nHost", "error 400: cut off\n");
    expect_requests("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na",
                    "POST / @x @x 2 {Host=x, Content-Length=2}\n'a'\nerror 400: cut off\n");
    expect_requests(
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n",
        "POST / @x @x -1 {Host=x, Transfer-Encoding=chunked}\n'a'\n"
        "error 400: cut off\n");
}

static void test_http_1_0_ends_the_connection_unless_asked_not_to(void **state)
{
    (void)state;
    expect_requests("GET / HTTP/1.0\r\n\r\n", "GET / @ @ 0 last 1.0\nend\n");
    expect_requests("GET / HTTP/1.0\r\nConnection: foo, Keep-Alive\r\nExpect: x\r\n\r\n",
                    "GET / @ @ 0 1.0 {Connection=foo, Keep-Alive, Expect=x}\nend\n");
}

static void test_the_target_may_have_other_forms(void **state)
{
    (void)state;
    expect_requests("GET HTTP://a:1/b HTTP/1.1\r\nHost: c\r\n\r\n",
                    "GET /b @a:1 @a 0 {Host=c}\nend\n");
    expect_requests("GET http://a HTTP/1.1\r\nHost: c\r\n\r\n", "GET / @a @a 0 {Host=c}\nend\n");
    expect_requests("OPTIONS http://a HTTP/1.1\r\nHost: c\r\n\r\n",
                    "OPTIONS * @a @a 0 {Host=c}\nend\n");
    expect_requests("OPTIONS * HTTP/1.1\r\nHost: c\r\n\r\n", "OPTIONS * @c @c 0 {Host=c}\nend\n");
    expect_requests("CONNECT a:1 HTTP/1.1\r\nHost: c\r\n\r\n",
                    "CONNECT * @a:1 @a 0 last {Host=c}\nend\n");
}

static void test_what_a_client_asks_of_the_connection_is_told(void **state)
{
    (void)state;
    expect_requests("GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
                    "Connection: keep-alive, Upgrade\r\n\r\n",
                    "GET / @x @x 0 upgrade {Host=x, Upgrade=websocket, "
                    "Connection=keep-alive, Upgrade}\nend\n");
    expect_requests("GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
                    "GET / @x @x 0 {Host=x, Upgrade=h2c, Connection=upgrade}\nend\n");
    expect_requests(
        "PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n1",
        "PUT / @x @x 1 continue {Host=x, Expect=100-Continue, Content-Length=1}\n"
        "'1'\nend\n");
}

#define BEFORE "POST / HTTP/1.1\r\nHost: x\r\n"
#define CHUNKED "Transfer-Encoding: chunked\r\n"

static const struct {
    const char *request;
    unsigned status;
} refused[] = {
    {"GET  / HTTP/1.1\r\n", 400},
    {"GET /\r\n", 400},
    {"GET / \r\n", 400},
    {"G(T / HTTP/1.1\r\n", 400},
    {" GET / HTTP/1.1\r\n", 400},
    {"\nGET / HTTP/1.1\r\n", 400},
    {"\rGET / HTTP/1.1\r\n", 400},
    {"GET / HTTP/1.1 \r\n", 400},
    {"GET / http/1.1\r\n", 400},
    {"GET / HTTP/1.10\r\n", 400},
    {"GET / HTTP/1.2\r\n", 505},
    {"GET / HTTP/0.9\r\n", 505},
    {"PRI * HTTP/2.0\r\n", 505},
    {"GET /\x80 HTTP/1.1\r\n", 400},
    {"GET /\x7f HTTP/1.1\r\n", 400},
    {"GET /a#b HTTP/1.1\r\n", 400},
    {"GET /a\tb HTTP/1.1\r\n", 400},
    {"GET / HTTP/1.1\nHost: x\n\n", 400},
    {"GET / HTTP/1.1\r\nHost: x\n\r\n", 400},
    {"GET / HTTP/1.1\r\nHost: x\n\n", 400},
    {"GET / HTTP/1.1\r\nHost: x\r\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\nHost: x\r\n\rA: b\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400},
    {"GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\nHost: []\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\n\tHost: x\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\nHost\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\nHost: x\r\nA\xc3: b\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\nHost: x\r\nA: \x01\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\nHost: x\r\nA: 0123456789abcdef\x7f\r\n\r\n", 400},
    {"GET http://a/ HTTP/1.1\r\n\r\n", 400},
    {"GET http:/// HTTP/1.1\r\nHost: x\r\n\r\n", 400},
    {"GET http://u@a/ HTTP/1.1\r\nHost: x\r\n\r\n", 400},
    {"GET http://a?b HTTP/1.1\r\nHost: x\r\n\r\n", 400},
    {"GET https://a/ HTTP/1.1\r\nHost: x\r\n\r\n", 400},
    {"GET a HTTP/1.1\r\nHost: x\r\n\r\n", 400},
    {"GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400},
    {"CONNECT / HTTP/1.1\r\nHost: x\r\n\r\n", 400},
    {"CONNECT a/b HTTP/1.1\r\nHost: x\r\n\r\n", 400},
    {"TRACE / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n", 400},
    {"CONNECT a:1 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n", 400},
    {BEFORE "Expect: 200-ok\r\n\r\n", 417},
    {BEFORE "Content-Length: 1\r\nContent-Length: 1\r\n\r\n", 400},
    {BEFORE "Content-Length: 1, 1\r\n\r\n", 400},
    {BEFORE "Content-Length: +1\r\n\r\n", 400},
    {BEFORE "Content-Length: -1\r\n\r\n", 400},
    {BEFORE "Content-Length: 0x1\r\n\r\n", 400},
    {BEFORE "Content-Length: 1 1\r\n\r\n", 400},
    {BEFORE "Content-Length:\r\n\r\n", 400},
    {BEFORE "Content-Length: 9223372036854775808\r\n\r\n", 400},
    {BEFORE "Content-Length: 18446744073709551617\r\n\r\n", 400},
    {BEFORE "Content_Length: 1\r\n\r\n", 400},
    {BEFORE "Content-Length: 1\r\n" CHUNKED "\r\n", 400},
    {BEFORE CHUNKED "Content-Length: 1\r\n\r\n", 400},
    {BEFORE CHUNKED CHUNKED "\r\n", 400},
    {BEFORE "Transfer-Encoding: chunked, chunked\r\n\r\n", 400},
    {BEFORE "Transfer-Encoding: chunked, gzip\r\n\r\n", 400},
    {BEFORE "Transfer-Encoding: gzip, chunked\r\n\r\n", 501},
    {BEFORE "Transfer-Encoding: identity\r\n\r\n", 501},
    {BEFORE "Transfer-Encoding: xchunked\r\n\r\n", 501},
    {BEFORE "Transfer-Encoding: \"chunked\"\r\n\r\n", 400},
    {BEFORE "Transfer-Encoding: chunked;q=1\r\n\r\n", 400},
    {BEFORE "Transfer-Encoding: \x0b"
            "chunked\r\n\r\n",
     400},
    {BEFORE "Transfer-Encoding:\r\n\r\n", 400},
    {BEFORE "Transfer-Encoding: chunked,\r\n\r\n", 400},
    {BEFORE "Transfer_Encoding: chunked\r\n\r\n", 400},
    {"POST / HTTP/1.0\r\n" CHUNKED "\r\n", 400},
    {"GET /# HTTP/1.0\r\n\r\n", 400},
    {BEFORE "Connection: a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a\r\n\r\n",
     400},
    {BEFORE "Connection: a b\r\n\r\n", 400},
    {BEFORE "Connection: \"close\"\r\n\r\n", 400},
};

static void test_what_is_ambiguous_is_refused(void **state)
{
    static struct story story, whole;
    char error[32];

    (void)state;
    for (size_t i = 0; i < COUNT(refused); i++) {
        const char *request = refused[i].request;

        snprintf(error, sizeof error, "error %u: ", refused[i].status);
        read_in_pieces(decoder_for(NULL), request, strlen(request), strlen(request), &whole);
        if (strncmp(whole.text, error, strlen(error)) != 0 || strstr(whole.text, "cut off"))
            fail_msg("%s: %s", request, whole.text);
        for (size_t piece = 1; piece < strlen(request); piece++) {
            read_in_pieces(decoder_for(NULL), request, strlen(request), piece, &story);
            assert_string_equal(story.text, whole.text);
        }
    }
}

static void test_a_nul_is_refused_wherever_it_is(void **state)
{
    static const char request[] = "PUT /a HTTP/1.1\r\nHost: x\r\nA: b\r\nB: c\r\n\r\n";
    char with[sizeof request];
    static struct story story;

    (void)state;
    for (size_t at = 0; at < sizeof request - 1; at++) {
        memcpy(with, request, sizeof with);
        with[at] = 0;
        read_in_pieces(decoder_for(NULL), with, sizeof with - 1, sizeof with, &story);
        assert_memory_equal(story.text, "error 400", 9);
    }
}

static const char *const bad_chunks[] = {
    "\r\n",
    " 1\r\n",
    "1 \r\n",
    "+1\r\n",
    "-1\r\n",
    "0x1\r\n",
    "1;\r\n",
    "1; a\r\n",
    "1 ;a\r\n",
    "1;a=\r\n",
    "1;a=\"\r\n",
    "1;a=\"\\\r\n",
    "1;a=b c\r\n",
    "1;a\n",
    "1\n",
    "1;a\rb\r\n",
    "1;a=\"\n\"\r\n",
    "g\r\n",
    "1g\r\n",
    "1234567890123456\r\n",
    "ffffffffffffffff\r\n",
    "fffffffffffffffff\r\n",
    "1,2\r\n",
    "1\r\nab\r\n",
    "1\r\na\n",
    "1\r\naX\n0\r\n\r\n",
    "1;a=\"\x01\"\r\na\r\n0\r\n\r\n",
    "1\r\na\rb",
    "1\r\n\r\n0\r\n\r\n\r\n",
    "0\r\nContent-Length: 1\r\n\r\n",
    "0\r\nTransfer-Encoding: x\r\n\r\n",
    "0\r\nA : b\r\n\r\n",
    "0\r\nA: b\n\r\n",
    "0\r\n a\r\n\r\n",
    "0\r\n\n",
    "0\r\nHost: y\r\n\r\n",
    "0\r\nA\r\n\r\n",
    "0\r\n\rA: b\r\n\r\n",
};

static void test_bad_chunks_are_refused(void **state)
{
    static struct story story, whole;
    char request[256];

    (void)state;
    for (size_t i = 0; i < COUNT(bad_chunks); i++) {
        size_t size =
            (size_t)snprintf(request, sizeof request, "%s%s\r\n%s", BEFORE, CHUNKED, bad_chunks[i]);

        read_in_pieces(decoder_for(NULL), request, size, size, &whole);
        if (!strstr(whole.text, "error 400: ") || strstr(whole.text, "\nend") ||
            strstr(whole.text, "cut off"))
            fail_msg("%s: %s", bad_chunks[i], whole.text);
        for (size_t piece = 1; piece < size; piece++) {
            read_in_pieces(decoder_for(NULL), request, size, piece, &story);
            assert_string_equal(story.text, whole.text);
        }
    }
}

/* Whole blocks and what is left of them: each byte at each place. */
static void test_every_byte_is_seen_wherever_it_is(void **state)
{
    char text[40];

    (void)state;
    for (int byte = 0; byte < 256; byte++)
        for (size_t at = 0; at < sizeof text; at++) {
            bool control = (byte < ' ' && byte != '\t') || byte == 0x7f;
            bool foreign = byte <= ' ' || byte >= 0x7f || byte == '#';

            memset(text, 'a', sizeof text);
            text[at] = (char)byte;
            assert_ptr_equal(http1_value_end(text, text + sizeof text),
                             text + (control ? at : sizeof text));
            assert_ptr_equal(http1_target_end(text, text + sizeof text),
                             text + (foreign ? at : sizeof text));
        }
}

static void test_headers_are_known_by_their_names(void **state)
{
    static const struct {
        const char *name;
        enum header header;
    } names[] = {
        {"Connection", HEADER_CONNECTION},
        {"Content-Length", HEADER_CONTENT_LENGTH},
        {"EXPECT", HEADER_EXPECT},
        {"host", HEADER_HOST},
        {"HTTP2-Settings", HEADER_HTTP2_SETTINGS},
        {"Keep-Alive", HEADER_KEEP_ALIVE},
        {"Proxy-Authenticate", HEADER_PROXY_AUTHENTICATE},
        {"Proxy-Authentication-Info", HEADER_PROXY_AUTHENTICATION_INFO},
        {"Proxy-Authorization", HEADER_PROXY_AUTHORIZATION},
        {"Proxy-Connection", HEADER_PROXY_CONNECTION},
        {"Te", HEADER_TE},
        {"Trailer", HEADER_TRAILER},
        {"transfer-encoding", HEADER_TRANSFER_ENCODING},
        {"Upgrade", HEADER_UPGRADE},
        {"transfer_encoding", HEADER_DISGUISED},
        {"Content_Length", HEADER_DISGUISED},
        {"Content-Lengtj", HEADER_OTHER},
        {"Hosu", HEADER_OTHER},
        {"H", HEADER_OTHER},
        {"Transfer-Encoding-But-Longer", HEADER_OTHER},
    };

    (void)state;
    for (size_t i = 0; i < COUNT(names); i++)
        assert_int_equal(
            http1_header((struct text){names[i].name, (uint32_t)strlen(names[i].name)}),
            names[i].header);
}

/* ---- limits ---- */

static const char *error_of(const char *data, size_t size)
{
    static struct story story, whole;

    read_in_pieces(decoder_for(NULL), data, size, size, &whole);
    read_in_pieces(decoder_for(NULL), data, size, 1, &story);
    assert_string_equal(story.text, whole.text);
    return whole.text;
}

static void test_the_line_has_a_limit(void **state)
{
    char request[600] = "GET /";
    size_t end = limits.line_bytes - 9;

    (void)state;
    memset(request + 5, 'a', sizeof request - 5);
    memcpy(request + end, " HTTP/1.1\r\nHost: x\r\n\r\n", 23);
    assert_non_null(strstr(error_of(request, strlen(request)), "end\n"));
    memset(request + 5, 'a', sizeof request - 5);
    assert_memory_equal(error_of(request, sizeof request), "error 414", 9);
    memcpy(request + end + 1, " HTTP/1.1\r\nHost: x\r\n\r\n", 23);
    assert_memory_equal(error_of(request, strlen(request)), "error 414", 9);
    assert_memory_equal(error_of(request, limits.line_bytes + 2), "error 414", 9);
    assert_memory_equal(error_of(request, limits.line_bytes + 1), "error 400: cut off", 18);
}

static void test_the_head_has_a_limit(void **state)
{
    static const char begin[] = "GET / HTTP/1.1\r\nHost: x\r\nA: ";
    char request[2000];
    size_t end = limits.head_bytes - 4;

    (void)state;
    memset(request, 'a', sizeof request);
    memcpy(request, begin, sizeof begin - 1);
    memcpy(request + end, "\r\n\r\n", 5);
    assert_non_null(strstr(error_of(request, strlen(request)), "end\n"));
    assert_memory_equal(error_of(request, end + 3), "error 400: cut off", 18);
    request[end] = 'a';
    memcpy(request + end + 1, "\r\n\r\n", 5);
    assert_memory_equal(error_of(request, strlen(request)), "error 431", 9);
    assert_memory_equal(error_of(request, limits.head_bytes), "error 431", 9);
}

static void test_the_number_of_fields_has_a_limit(void **state)
{
    char request[1000] = "GET / HTTP/1.1\r\nHost: x\r\n";

    (void)state;
    for (uint32_t i = 1; i < limits.fields; i++)
        strcat(request, "A: b\r\n");
    strcat(request, "\r\n");
    assert_non_null(strstr(error_of(request, strlen(request)), "end\n"));
    strcpy(request + strlen(request) - 2, "A: b\r\n\r\n");
    assert_memory_equal(error_of(request, strlen(request)), "error 431", 9);
}

static void test_trailers_and_lines_of_chunks_have_limits(void **state)
{
    char request[3000] = BEFORE CHUNKED "\r\n1;a=";
    size_t size = strlen(request);

    (void)state;
    memset(request + size, 'a', 2000);
    assert_non_null(strstr(error_of(request, size + 2000), "error 400: too long a line"));
    memcpy(request + size - 4, "1\r\na\r\n0\r\nT: ", 12);
    assert_non_null(strstr(error_of(request, size + 2000), "error 431: too large trailers"));
}

/* Each byte is looked at once: of a large head, one byte at a time, too. */
static void test_a_head_that_drips_is_not_read_again_and_again(void **state)
{
    struct limits large = {.line_bytes = 8192, .head_bytes = 60000, .fields = 16};
    struct decoder decoder = {.limits = &large};
    static char request[50000] = "GET / HTTP/1.1\r\nHost: x\r\nA: ";
    struct message message;
    size_t consumed;

    (void)state;
    memset(request + strlen(request), 'a', sizeof request - strlen(request));
    for (size_t size = 1; size <= sizeof request; size++) {
        assert_int_equal(
            codec_http1.decode(&decoder, (uint8_t *)request, size, &consumed, &message),
            CODEC_MORE);
        assert_int_equal(consumed, 0);
        assert_int_equal(decoder.scanned, size);
    }
}

/* ---- responses ---- */

static const struct facts plain = {.keep_alive = true};

static void test_the_body_of_an_answer_ends_where_its_head_says(void **state)
{
    (void)state;
    expect_responses(plain,
                     "HTTP/1.1 200 All right\r\nContent-Length: 2\r\n\r\nab"
                     "HTTP/1.1 404\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
                     "HTTP/1.1 204 \r\n\r\nHTTP/1.1 200 \r\nHost: a\r\nHost: b\r\n\r\nab",
                     "200 All right 2 {Content-Length=2}\n'ab'\nend\n"
                     "404  -1 {Transfer-Encoding=chunked}\n'a'\nend\n"
                     "204  0\nend\n"
                     "200  -1 until-close last {Host=a, Host=b}\n'ab'\nend\n");
    expect_responses(plain, "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na",
                     "200 OK 1 last {Content-Length=1}\n'a'\nend\n");
    expect_responses(plain,
                     "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
                     "200 OK 0 {Connection=keep-alive, Content-Length=0}\nend\n");
    expect_responses(plain, "HTTP/1.1 200 OK\r\n\r\n", "200 OK -1 until-close last\nend\n");
}

static void test_answers_to_head_and_304_have_no_body(void **state)
{
    (void)state;
    expect_responses((struct facts){.head = true},
                     "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
                     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
                     "200 OK 2 {Content-Length=2}\nend\n"
                     "200 OK -1 {Transfer-Encoding=chunked}\nend\n"
                     "200 OK -1\nend\n");
    expect_responses(plain, "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n",
                     "304 Not Modified 2 {Content-Length=2}\nend\n");
    expect_responses(plain, "HTTP/1.1 204 x\r\nContent-Length: 2\r\n\r\n",
                     "204 x 0 last {Content-Length=2}\nend\n");
}

static void test_the_final_answer_follows_interim_ones(void **state)
{
    (void)state;
    expect_responses(plain,
                     "HTTP/1.1 100 Continue\r\nConnection: close\r\n\r\n"
                     "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"
                     "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                     "interim 100 Continue 0 {Connection=close}\nend\n"
                     "interim 103 Early Hints 0 {Link=a}\nend\n"
                     "200 OK 0 {Content-Length=0}\nend\n");
    expect_responses(plain, "HTTP/1.1 100 x\r\nContent-Length: 1\r\n\r\n",
                     "error 400: 1xx with a body\n");
}

#define SWITCH "HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"

static void test_another_protocol_comes_only_where_it_was_asked_for(void **state)
{
    (void)state;
    expect_responses(plain, SWITCH, "error 400: 101 that was not asked for\n");
    expect_responses((struct facts){.upgrade = true}, "HTTP/1.1 101 Go\r\n\r\n",
                     "error 400: 101 that was not asked for\n");
    expect_responses((struct facts){.upgrade = true}, SWITCH,
                     "101 Go 0 upgraded {Upgrade=websocket, Connection=Upgrade}\nend\n");
}

static void test_nothing_is_read_behind_a_switch(void **state)
{
    static const char data[] = SWITCH "HTTP/1.1 200 OK\r\n\r\n";
    struct decoder decoder = decoder_for(&(struct facts){.upgrade = true});
    struct message message;
    size_t consumed, size = sizeof data - 1;

    (void)state;
    assert_int_equal(codec_http1.decode(&decoder, (const uint8_t *)data, size, &consumed, &message),
                     CODEC_HEAD);
    assert_int_equal(consumed, strlen(SWITCH));
    assert_int_equal(codec_http1.decode(&decoder, (const uint8_t *)data + consumed, size - consumed,
                                        &consumed, &message),
                     CODEC_END);
    assert_int_equal(consumed, 0);
    assert_int_equal(codec_http1.decode(&decoder, (const uint8_t *)data, size, &consumed, &message),
                     CODEC_ERROR);
}

static void test_what_is_ambiguous_in_an_answer_is_refused(void **state)
{
    static const char *const answers[] = {
        "http/1.1 200 OK\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 600 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 200\tOK\r\n\r\n",
        "HTTP/1.1 200 O\x01K\r\n\r\n",
        "HTTP/1.1 200 OK\n\n",
        "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n" CHUNKED "\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "HTTP/1.0 200 OK\r\n" CHUNKED "\r\n",
    };
    static struct story story;

    (void)state;
    for (size_t i = 0; i < COUNT(answers); i++)
        for (size_t piece = 1; piece <= strlen(answers[i]); piece++) {
            read_in_pieces(decoder_for(&plain), answers[i], strlen(answers[i]), piece, &story);
            if (strncmp(story.text, "error ", 6) != 0 || strstr(story.text, "cut off"))
                fail_msg("%s: %s", answers[i], story.text);
        }
}

static void test_a_plain_body_may_be_moved_without_the_codec(void **state)
{
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";
    struct decoder decoder = decoder_for(&plain);
    struct message message;
    size_t consumed;

    (void)state;
    assert_int_equal(
        codec_http1.decode(&decoder, (const uint8_t *)head, sizeof head - 1, &consumed, &message),
        CODEC_HEAD);
    assert_true(decoder.plain);
    assert_int_equal(decoder.left, 1000);
    decoder.left = 0;
    assert_int_equal(codec_http1.decode(&decoder, NULL, 0, &consumed, &message), CODEC_END);
    assert_false(decoder.plain);
}

/* ---- what is written ---- */

/* The first message of the data, and its body, written again. */
static const char *encode_with(struct decoder decoder, const char *data,
                               const struct adjustment *adjustment, struct encoder *encoder)
{
    static uint8_t to[4096];
    size_t size = strlen(data), from, consumed, written;
    struct message message;
    enum codec_event event;

    *encoder = (struct encoder){.chunked = false};
    assert_int_equal(codec_http1.decode(&decoder, (const uint8_t *)data, size, &from, &message),
                     CODEC_HEAD);
    written = codec_http1.encode(encoder, &message, adjustment, to, sizeof to - 100);
    assert_in_range(written, 1, size + ENCODING_ROOM);
    for (size_t room = 0; room < written; room++) /* it fits, or it does not */
        assert_int_equal(codec_http1.encode(encoder, &message, adjustment, to, room), 0);
    assert_int_equal(codec_http1.encode(encoder, &message, adjustment, to, written), written);
    while ((event = codec_http1.decode(&decoder, (const uint8_t *)data + from, size - from,
                                       &consumed, &message)) == CODEC_DATA) {
        from += consumed;
        written += codec_http1.before_data(encoder, message.data.size, to + written);
        memcpy(to + written, message.data.at, message.data.size);
        written += message.data.size;
        written += codec_http1.after_data(encoder, to + written);
    }
    if (event == CODEC_END)
        written += codec_http1.end(encoder, &message, to + written, sizeof to - written - 1);
    to[written] = 0;
    return (const char *)to;
}

static void expect_encoded_request(const char *data, struct rewrite rewrite, const char *expected)
{
    struct adjustment adjustment = {.rewrite = &rewrite,
                                    .original_destination = TEXT("10.0.0.1:80")};
    struct encoder encoder;

    assert_string_equal(encode_with(decoder_for(NULL), data, &adjustment, &encoder), expected);
}

static const struct rewrite none;

static void test_what_is_for_one_connection_is_not_passed_on(void **state)
{
    (void)state;
    expect_encoded_request(
        "GET / HTTP/1.1\r\nA: b\r\nKeep-Alive: 3\r\nConnection: close, X-Hop, A-Hop\r\nX-Hop: 1\r\n"
        "Host: x\r\nProxy-Connection: y\r\nProxy-Authorization: z\r\nTE: gzip\r\na-hop: 2\r\n"
        "Upgrade: h2c\r\nHTTP2-Settings: a\r\nTrailer: T\r\n\r\n",
        none, "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\n");
}

static void test_connection_removes_nothing_that_others_rely_on(void **state)
{
    (void)state;
    expect_encoded_request(
        "POST / HTTP/1.1\r\nHost: x\r\nConnection: Host, Content-Length, X-Forwarded-For, "
        "Cookie\r\n"
        "Content-Length: 1\r\nX-Forwarded-For: 1\r\nCookie: c\r\n\r\na",
        none,
        "POST / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 1\r\nCookie: c\r\nContent-Length: 1\r\n"
        "\r\na");
}

static void test_where_a_request_ends_is_written_anew(void **state)
{
    (void)state;
    expect_encoded_request("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: CHUNKED\r\n\r\n"
                           "00a;ext\r\n0123456789\r\n1\r\na\r\n0\r\nT: u\r\nCookie: v\r\n\r\n",
                           none,
                           "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                           "a\r\n0123456789\r\n1\r\na\r\n0\r\nT: u\r\n\r\n");
    expect_encoded_request("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 000\r\n\r\n", none,
                           "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
}

static void test_the_authority_of_the_target_becomes_the_host(void **state)
{
    (void)state;
    expect_encoded_request("GET http://a:1/b HTTP/1.1\r\nHost: c\r\n\r\n", none,
                           "GET /b HTTP/1.1\r\nHost: a:1\r\n\r\n");
    expect_encoded_request("GET / HTTP/1.0\r\n\r\n", none,
                           "GET / HTTP/1.1\r\nHost: 10.0.0.1:80\r\n\r\n");
}

static void test_upgrades_and_expectations_are_passed_on(void **state)
{
    (void)state;
    expect_encoded_request(
        "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade, te\r\n"
        "TE: trailers;q=0.5, trailers\r\nExpect: 100-continue\r\n\r\n",
        none,
        "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nTE: trailers\r\n"
        "Connection: Upgrade, TE\r\n\r\n");
    expect_encoded_request(
        "PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", none,
        "PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n");
}

static void test_requests_are_rewritten(void **state)
{
    static const struct field set[] = {
        {TEXT("X-Set"), TEXT("1")},
        {TEXT("X-New"), TEXT("2")},
        {TEXT("X-Bad"), TEXT("a\r\nX-Injected: b")},
        {TEXT("X Bad"), TEXT("a")},
        {TEXT("Content-Length"), TEXT("7")},
    };
    static const struct text remove[] = {TEXT("X-Gone")};

    (void)state;
    expect_encoded_request("GET /a HTTP/1.1\r\nHost: x\r\nx-set: 0\r\nX-GONE: y\r\nX-Stays: z\r\n"
                           "x-original: fake\r\nX-Set: 3\r\n\r\n",
                           (struct rewrite){.host = TEXT("h"),
                                            .set = set,
                                            .set_count = COUNT(set),
                                            .remove = remove,
                                            .remove_count = COUNT(remove),
                                            .original_destination = TEXT("X-Original")},
                           "GET /a HTTP/1.1\r\nHost: h\r\nX-Stays: z\r\nX-Set: 1\r\nX-New: 2\r\n"
                           "X-Original: 10.0.0.1:80\r\n\r\n");
}

static void test_a_host_that_would_be_more_is_not_rewritten(void **state)
{
    (void)state;
    expect_encoded_request("GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                           (struct rewrite){.host = TEXT("h\r\nX-Injected: b")},
                           "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
}

static void test_prefixes_of_paths_are_joined_with_one_slash(void **state)
{
    static const struct {
        const char *path, *prefix, *with, *expected;
    } joins[] = {
        {"/v2/a", "/v2/", "/", "/a"},
        {"/v2/a", "/v2", "/", "/a"},
        {"/v2/a", "/v2/", "/x", "/x/a"},
        {"/v2/a", "/v2", "/x/", "/x/a"},
        {"/v2/a", "/v2/", "/x/", "/x/a"},
        {"/v2/a", "/v2", "/x", "/x/a"},
        {"/v2", "/v2", "/x", "/x"},
        {"/v2?q", "/v2", "/x", "/x?q"},
        {"/v2?q", "/v2", "/", "/?q"},
        {"/v2", "/v2", "", "/"},
        {"/v2/a", "/v2/", "", "/a"},
        {"/v2b", "/v2", "/x", "/xb"},
        {"/a", "/", "/x", "/x/a"},
        {"//a", "/", "/x", "/x//a"},
        {"/v2/a", "/v2/", "x", "/x/a"},
        {"/v2/", "/v2/", "/x", "/x/"},
        {"/v2/a", "/v2/", "/x\r\n", "/v2/a"},
        {"/a", "", "/x", "/x/a"},
    };
    char request[100], expected[100];

    (void)state;
    for (size_t i = 0; i < COUNT(joins); i++) {
        snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", joins[i].path);
        snprintf(expected, sizeof expected, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n",
                 joins[i].expected);
        expect_encoded_request(
            request,
            (struct rewrite){.path_prefix = {joins[i].with, (uint32_t)strlen(joins[i].with)},
                             .path_prefix_size = (uint32_t)strlen(joins[i].prefix)},
            expected);
    }
    expect_encoded_request("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
                           (struct rewrite){.path_prefix = TEXT("/x")},
                           "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n");
}

static const char *encode_answer(struct facts facts, bool close, const char *data,
                                 struct encoder *encoder)
{
    struct adjustment adjustment = {.facts = facts, .close = close};

    return encode_with(decoder_for(&facts), data, &adjustment, encoder);
}

static void expect_encoded_answer(struct facts facts, const char *data, const char *expected)
{
    struct encoder encoder;
    const char *answer = encode_answer(facts, false, data, &encoder);

    assert_string_equal(answer, expected);
    assert_int_equal(encoder.close, strstr(answer, "Connection: close") != NULL);
}

static void test_answers_are_framed_for_who_asked(void **state)
{
    static const struct facts http10 = {.http10 = true},
                              kept10 = {.http10 = true, .keep_alive = true}, closing;
    static const char known[] = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nA: b\r\n\r\na",
                      chunked[] = "HTTP/1.1 200 OK\r\n" CHUNKED
                                  "Trailer: T\r\n\r\n1\r\na\r\n0\r\nT: u\r\n\r\n";

    (void)state;
    expect_encoded_answer(plain, known, "HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 1\r\n\r\na");
    expect_encoded_answer(closing, known,
                          "HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 1\r\n"
                          "Connection: close\r\n\r\na");
    expect_encoded_answer(kept10, known,
                          "HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 1\r\n"
                          "Connection: keep-alive\r\n\r\na");
    expect_encoded_answer(plain, chunked,
                          "HTTP/1.1 200 OK\r\nTrailer: T\r\n" CHUNKED
                          "\r\n1\r\na\r\n0\r\nT: u\r\n\r\n");
    expect_encoded_answer(kept10, chunked, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\na");
    expect_encoded_answer(http10, chunked, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\na");
    expect_encoded_answer(plain, "HTTP/1.0 200 OK\r\n\r\na",
                          "HTTP/1.1 200 OK\r\n" CHUNKED "\r\n1\r\na\r\n");
}

static void test_answers_without_a_body_are_framed_too(void **state)
{
    static const struct facts head = {.head = true, .keep_alive = true},
                              upgrading = {.upgrade = true, .keep_alive = true};

    (void)state;
    expect_encoded_answer(head, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
                          "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n");
    expect_encoded_answer(head, "HTTP/1.1 200 OK\r\n" CHUNKED "\r\n", "HTTP/1.1 200 OK\r\n\r\n");
    expect_encoded_answer(plain, "HTTP/1.1 204 x\r\nContent-Length: 0\r\n\r\n",
                          "HTTP/1.1 204 x\r\n\r\n");
    expect_encoded_answer(plain, "HTTP/1.1 100 Continue\r\nA: b\r\nConnection: close\r\n\r\n",
                          "HTTP/1.1 100 Continue\r\nA: b\r\n\r\n");
    expect_encoded_answer(upgrading, SWITCH, SWITCH);
    expect_encoded_answer(plain, "HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n",
                          "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
}

static void test_an_answer_says_that_the_connection_ends(void **state)
{
    struct encoder encoder;

    (void)state;
    assert_string_equal(
        encode_answer(plain, true, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", &encoder),
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    assert_true(encoder.close);
}

/* ---- answers of our own ---- */

static void expect_rejection(struct facts facts, struct rejection rejection, const char *expected)
{
    uint8_t to[512] = {0};
    uint32_t status = 0;
    size_t size;

    rejection.status = &status;
    size = codec_http1.reject(&facts, 0, &rejection, to, sizeof to - 1);
    assert_int_equal(size, strlen(expected));
    assert_string_equal((char *)to, expected);
    assert_int_equal(status, atoi(expected + 9));
    assert_int_equal(codec_http1.reject(&facts, 0, &rejection, to, size - 1), 0);
}

static void test_rejections_say_why(void **state)
{
    (void)state;
    expect_rejection((struct facts){.keep_alive = false}, (struct rejection){.flag = DP_FLAG_LOOP},
                     "HTTP/1.1 508 Loop Detected\r\nContent-Type: text/plain\r\n"
                     "x-sidecar-reason: loop\r\nConnection: close\r\nContent-Length: 14\r\n\r\n"
                     "Loop Detected\n");
    expect_rejection(plain, (struct rejection){.flag = DP_FLAG_NO_ROUTE},
                     "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\n"
                     "x-sidecar-reason: no_route\r\nContent-Length: 10\r\n\r\nNot Found\n");
    expect_rejection(
        (struct facts){.head = true, .keep_alive = true},
        (struct rejection){.flag = DP_FLAG_TIMEOUT, .close = true},
        "HTTP/1.1 504 Gateway Timeout\r\nContent-Type: text/plain\r\n"
        "x-sidecar-reason: timeout\r\nConnection: close\r\nContent-Length: 16\r\n\r\n");
    expect_rejection((struct facts){.http10 = true, .keep_alive = true},
                     (struct rejection){.flag = DP_FLAG_MALFORMED_REQUEST,
                                        .http_status = 431,
                                        .reason = TEXT("too much")},
                     "HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain\r\n"
                     "x-sidecar-reason: malformed_request\r\nConnection: keep-alive\r\n"
                     "Content-Length: 9\r\n\r\ntoo much\n");
}

static void test_every_failure_has_a_status(void **state)
{
    static const struct {
        enum dp_flag flag;
        uint32_t status;
    } expected[] = {
        {DP_FLAG_NO_ROUTE, 404},
        {DP_FLAG_NO_ENDPOINT, 503},
        {DP_FLAG_CONNECT_FAILED, 502},
        {DP_FLAG_CONNECT_TIMEOUT, 504},
        {DP_FLAG_TIMEOUT, 504},
        {DP_FLAG_UPSTREAM_RESET, 502},
        {DP_FLAG_OVERLOAD, 503},
        {DP_FLAG_MALFORMED_REQUEST, 400},
        {DP_FLAG_MALFORMED_RESPONSE, 502},
        {DP_FLAG_REFUSED, 405},
        {DP_FLAG_LOOP, 508},
        {DP_FLAG_RATE_LIMITED, 429},
        {DP_FLAG_FAULT_ABORT, 503},
        {DP_FLAG_DRAIN_LIMIT, 503},
    };

    (void)state;
    for (size_t i = 0; i < COUNT(expected); i++) {
        uint8_t to[512];
        uint32_t status;
        struct rejection rejection = {.flag = expected[i].flag, .status = &status};

        assert_int_not_equal(codec_http1.reject(&plain, 0, &rejection, to, sizeof to), 0);
        assert_int_equal(status, expected[i].status);
    }
}

/* ---- detection ---- */

static enum detection detected(const char *data)
{
    return codec_http1.detect((const uint8_t *)data, strlen(data));
}

static void test_requests_are_told_from_other_protocols(void **state)
{
    static const char *const requests[] = {"GET / HTTP/1.1\r\n", "OPTIONS * HTTP/1.1\r\n",
                                           "POST http://x/ HTTP/1.1\r\n",
                                           "CONNECT x:443 HTTP/1.1\r\n", "VERSION-CONTROL /x"};
    static const char *const others[] = {
        "PRI * HTTP/2.0\r\n",
        "OPTIONS rtsp://x/ RTSP/1.0\r\n",
        "OPTIONS * RTSP/1.0\r\n",
        "OPTIONS sip:x SIP/2.0",
        "GET key\r\n",
        "get /\r\n",
        "GETX /",
        "\x16\x03\x01",
        "\xda\xbb\xc2",
        "\x01\x00\x01",
        "CONNECT\n",
        "CONNECT a b",
    };

    (void)state;
    for (size_t i = 0; i < COUNT(requests); i++) {
        enum detection before = DETECT_MORE;

        for (size_t size = 1; size <= strlen(requests[i]); size++) {
            enum detection now = codec_http1.detect((const uint8_t *)requests[i], size);

            assert_int_not_equal(now, DETECT_NO);
            assert_true(now >= before);
            before = now;
        }
        assert_int_equal(before, DETECT_YES);
    }
    for (size_t i = 0; i < COUNT(others); i++)
        assert_int_equal(detected(others[i]), DETECT_NO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_request_is_told_by_its_parts),
        cmocka_unit_test(test_one_request_follows_the_other),
        cmocka_unit_test(test_nothing_is_read_behind_the_last_request),
        cmocka_unit_test(test_one_empty_line_may_come_before_a_request),
        cmocka_unit_test(test_what_a_connection_cuts_off_is_told),
        cmocka_unit_test(test_http_1_0_ends_the_connection_unless_asked_not_to),
        cmocka_unit_test(test_the_target_may_have_other_forms),
        cmocka_unit_test(test_what_a_client_asks_of_the_connection_is_told),
        cmocka_unit_test(test_what_is_ambiguous_is_refused),
        cmocka_unit_test(test_a_nul_is_refused_wherever_it_is),
        cmocka_unit_test(test_bad_chunks_are_refused),
        cmocka_unit_test(test_every_byte_is_seen_wherever_it_is),
        cmocka_unit_test(test_headers_are_known_by_their_names),
        cmocka_unit_test(test_the_line_has_a_limit),
        cmocka_unit_test(test_the_head_has_a_limit),
        cmocka_unit_test(test_the_number_of_fields_has_a_limit),
        cmocka_unit_test(test_trailers_and_lines_of_chunks_have_limits),
        cmocka_unit_test(test_a_head_that_drips_is_not_read_again_and_again),
        cmocka_unit_test(test_the_body_of_an_answer_ends_where_its_head_says),
        cmocka_unit_test(test_answers_to_head_and_304_have_no_body),
        cmocka_unit_test(test_the_final_answer_follows_interim_ones),
        cmocka_unit_test(test_another_protocol_comes_only_where_it_was_asked_for),
        cmocka_unit_test(test_nothing_is_read_behind_a_switch),
        cmocka_unit_test(test_what_is_ambiguous_in_an_answer_is_refused),
        cmocka_unit_test(test_a_plain_body_may_be_moved_without_the_codec),
        cmocka_unit_test(test_what_is_for_one_connection_is_not_passed_on),
        cmocka_unit_test(test_connection_removes_nothing_that_others_rely_on),
        cmocka_unit_test(test_where_a_request_ends_is_written_anew),
        cmocka_unit_test(test_the_authority_of_the_target_becomes_the_host),
        cmocka_unit_test(test_upgrades_and_expectations_are_passed_on),
        cmocka_unit_test(test_requests_are_rewritten),
        cmocka_unit_test(test_a_host_that_would_be_more_is_not_rewritten),
        cmocka_unit_test(test_prefixes_of_paths_are_joined_with_one_slash),
        cmocka_unit_test(test_answers_are_framed_for_who_asked),
        cmocka_unit_test(test_answers_without_a_body_are_framed_too),
        cmocka_unit_test(test_an_answer_says_that_the_connection_ends),
        cmocka_unit_test(test_rejections_say_why),
        cmocka_unit_test(test_every_failure_has_a_status),
        cmocka_unit_test(test_requests_are_told_from_other_protocols),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
