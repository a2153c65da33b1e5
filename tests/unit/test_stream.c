/* Requests from a client's socket to an upstream's and back, while memory runs out. */
#include "requests.h"

enum { BODY = 100000, REQUESTS = 4, FRAME_HEAD = 22 };

static int client;
static bool may_be_gone; /* the upstream's connections, when it answers */
static struct session *session;
static char answers[4 << 20];
static size_t answers_size;
static bool client_ended;
static char sent[1 << 18];
static size_t to_send, sent_size;

static void client_turn(void)
{
    ssize_t count;

    if (client < 0)
        return;
    if (sent_size < to_send) {
        count = send(client, sent + sent_size, to_send - sent_size, MSG_NOSIGNAL);
        if (count > 0)
            sent_size += (size_t)count;
    }
    count = recv(client, answers + answers_size, sizeof answers - answers_size, 0);
    if (count > 0)
        answers_size += (size_t)count;
    else if (count == 0 || errno != EAGAIN)
        client_ended = true;
}

static void begin_client(void)
{
    answers_size = sent_size = 0;
    client_ended = false;
    session = arrive(&client);
}

static void end_client(void)
{
    close(client);
    client = -1;
    for (int i = 0; i < PATIENCE && serving.closed < serving.sessions; i++)
        pump(NULL);
    assert_int_equal(serving.closed, serving.sessions);
}

static void send_answer(const struct upstream_peer *peer, const char *answer, size_t size)
{
    ssize_t sent = send(peer->fd, answer, size, MSG_NOSIGNAL);

    if (!may_be_gone)
        assert_int_equal(sent, (ssize_t)size);
}

/* ---- HTTP ---- */

/* Answers what is complete: with the number from the path, then so many bytes as the body had. */
static void serve_http(struct upstream_peer *peer)
{
    static char answer[BODY + 200];
    char *end;

    while ((end = memmem(peer->data, peer->size, "\r\n\r\n", 4))) {
        size_t head = (size_t)(end + 4 - peer->data), body = 0;
        const char *length = memmem(peer->data, head, "Content-Length: ", 16);
        int size;

        if (length)
            body = (size_t)atol(length + 16);
        if (peer->size < head + body)
            return;
        size = snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n%c",
                        body + 1, strchr(peer->data, '/')[1]);
        memset(answer + size, 'x', body);
        send_answer(peer, answer, (size_t)size + body);
        drop_from_peer(peer, head + body);
    }
}

static void write_http_requests(void)
{
    to_send = 0;
    for (int i = 0; i < REQUESTS; i++) {
        size_t body = i == 1 ? BODY : i == 2 ? 100 : 0;

        to_send += (size_t)sprintf(sent + to_send, "%s /%d HTTP/1.1\r\nHost: a\r\n",
                                   body ? "POST" : "GET", i);
        if (body)
            to_send += (size_t)sprintf(sent + to_send, "Content-Length: %zu\r\n", body);
        to_send += (size_t)sprintf(sent + to_send, "\r\n");
        memset(sent + to_send, 'y', body);
        to_send += body;
    }
}

/* The answers so far are in order; true: there are all of them. */
static bool check_http(void)
{
    size_t at = 0;
    int number = 0;

    while (at < answers_size) {
        char *head = answers + at, *end = memmem(head, answers_size - at, "\r\n\r\n", 4);
        const char *length;
        size_t size, body;

        if (!end)
            break;
        length = memmem(head, answers_size - at, "Content-Length: ", 16);
        assert_non_null(length);
        body = (size_t)atol(length + 16);
        size = (size_t)(end + 4 - head) + body;
        if (size > answers_size - at)
            break;
        assert_memory_equal(head, "HTTP/1.1 ", 9);
        if (memcmp(head + 9, "200", 3) == 0)
            assert_int_equal(end[4], '0' + number);
        else
            assert_int_equal(head[9], '5');
        number++;
        at += size;
    }
    assert_in_range(number, 0, REQUESTS);
    return number == REQUESTS;
}

/* ---- Bolt ---- */

static size_t write_frame(char *to, int type, int command, uint32_t id, char nonce, size_t size)
{
    unsigned char head[FRAME_HEAD] = {1, (unsigned char)type, 0, (unsigned char)command, 1};
    size_t at = FRAME_HEAD;

    for (int i = 0; i < 4; i++)
        head[5 + i] = (unsigned char)(id >> (24 - 8 * i));
    head[9] = 1;
    if (type == 0) { /* a response has its status for the timeout: 2 bytes less */
        head[10] = head[11] = 0;
        memset(head + 12, 0, sizeof head - 12);
        for (int i = 0; i < 4; i++)
            head[16 + i] = (unsigned char)(size >> (24 - 8 * i));
        at -= 2;
    } else {
        head[12] = 3; /* ms * 256 */
        for (int i = 0; i < 4; i++)
            head[18 + i] = (unsigned char)(size >> (24 - 8 * i));
    }
    memcpy(to, head, at);
    memset(to + at, nonce, size);
    return at + size;
}

static uint32_t number_at(const char *at)
{
    const unsigned char *bytes = (const unsigned char *)at;

    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

static void serve_bolt(struct upstream_peer *peer)
{
    static char answer[BODY + 100];

    while (peer->size >= FRAME_HEAD) {
        size_t content = number_at(peer->data + 18), size = FRAME_HEAD + content;

        if (peer->size < size)
            return;
        size_t length = write_frame(answer, 0, 2, number_at(peer->data + 5),
                                    content ? peer->data[FRAME_HEAD] : 0, content);
        send_answer(peer, answer, length);
        drop_from_peer(peer, size);
    }
}

static void write_bolt_requests(void)
{
    to_send = 0;
    for (uint32_t i = 0; i < REQUESTS; i++)
        to_send += write_frame(sent + to_send, 1, 1, 100 + i, (char)('a' + i), i == 1 ? BODY : 10);
}

static bool check_bolt(void)
{
    bool seen[REQUESTS] = {false};
    size_t at = 0, count = 0;

    while (answers_size - at >= FRAME_HEAD - 2) {
        const char *frame = answers + at;
        uint32_t id = number_at(frame + 5) - 100;
        size_t size = FRAME_HEAD - 2 + ((size_t)(unsigned char)frame[12] << 8) +
                      (unsigned char)frame[13] + ((size_t)(unsigned char)frame[14] << 8) +
                      (unsigned char)frame[15] + number_at(frame + 16);

        if (size > answers_size - at)
            break;
        assert_in_range(id, 0, REQUESTS - 1);
        assert_false(seen[id]);
        seen[id] = true;
        if (frame[10] == 0 && frame[11] == 0)
            assert_int_equal(frame[FRAME_HEAD - 2], (int)('a' + id));
        at += size;
        count++;
    }
    return count == REQUESTS;
}

/* ---- memory ---- */

/* So late that requests are hedged, and each third time not at all. */
static void serve_badly(struct upstream_peer *peer)
{
    static unsigned turns;

    if (peer->size == 0 || worker->loop.now_ms % 4 > 0)
        return;
    if (turns++ % 3 == 0) {
        close(peer->fd);
        peer->fd = -1;
    } else if (serving.protocol == DP_BOLT) {
        serve_bolt(peer);
    } else {
        serve_http(peer);
    }
}

static void all_of_it(enum dp_protocol protocol, unsigned failing, bool resilient)
{
    void (*serve)(struct upstream_peer *) = resilient             ? serve_badly
                                            : protocol == DP_BOLT ? serve_bolt
                                                                  : serve_http;
    bool (*check)(void) = protocol == DP_BOLT ? check_bolt : check_http;

    may_be_gone = resilient;
    serving_begin(protocol, 2)->timeout_ms = 0;
    if (resilient)
        serving_be_resilient(protocol);
    serving_offer();
    (protocol == DP_BOLT ? write_bolt_requests : write_http_requests)();
    failing_set(failing);
    begin_client();
    for (int i = 0; i < PATIENCE && !client_ended && !check(); i++) {
        client_turn();
        pump(serve);
    }
    assert_true(check() || client_ended);
    end_client();
}

static void any_allocation_fails(enum dp_protocol protocol, bool resilient)
{
    const uint32_t helps = 1u << DP_FLAG_RETRIED | 1u << DP_FLAG_HEDGED | 1u << DP_FLAG_MIRRORED |
                           1u << DP_FLAG_FAULT_DELAY;
    uint32_t flags = 0;
    unsigned failing = 0;
    bool failed;

    do {
        all_of_it(protocol, ++failing, resilient);
        failed = failing_take();
        if (!failed) {
            assert_int_equal(serving.requests, REQUESTS);
            if (!resilient)
                assert_int_equal(serving.flags, 0);
        }
        flags |= serving.flags;
        serving_end();
    } while (failed);
    assert_in_range(failing, 10, 1000);
    assert_int_equal(flags & helps, resilient ? helps : 0); /* in one run or the other */
}

static void test_any_allocation_fails_http(void **state)
{
    (void)state;
    any_allocation_fails(DP_HTTP1, false);
}

static void test_any_allocation_fails_bolt(void **state)
{
    (void)state;
    any_allocation_fails(DP_BOLT, false);
}

static void test_any_allocation_fails_of_what_helps_http(void **state)
{
    (void)state;
    any_allocation_fails(DP_HTTP1, true);
}

static void test_any_allocation_fails_of_what_helps_bolt(void **state)
{
    (void)state;
    any_allocation_fails(DP_BOLT, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_allocation_fails_http),
        cmocka_unit_test(test_any_allocation_fails_bolt),
        cmocka_unit_test(test_any_allocation_fails_of_what_helps_http),
        cmocka_unit_test(test_any_allocation_fails_of_what_helps_bolt),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
