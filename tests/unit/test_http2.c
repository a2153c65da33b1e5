/* Requests of HTTP/2 between a client and an upstream that libnghttp2 speaks for, while memory runs
 * out, ours as well as libnghttp2's. */
#include <dlfcn.h>
#include <nghttp2/nghttp2.h>

#include "http2_peers.h"
#include "requests.h"

enum { BODY = 100000, REQUESTS = 4 };

/* ---- sessions of the data plane ---- */

typedef int (*session_new)(nghttp2_session **, const nghttp2_session_callbacks *, void *,
                           const nghttp2_option *, nghttp2_mem *);

static int32_t first_upstream_id; /* of each connection to an upstream; 0: 1 */
static void *(*resize)(void *memory, size_t size, void *user);

/* Where its queue of streams cannot grow, libnghttp2 1.52 frees an item twice. */
static void *resize_in_any_case(void *memory, size_t size, void *user)
{
    void *result = resize(memory, size, user);

    return result || size == 0 ? result : resize(memory, size, user);
}

/* These come before those of the library. Its own sessions, those of peers, have no `memory`. */
int nghttp2_session_client_new3(nghttp2_session **session,
                                const nghttp2_session_callbacks *callbacks, void *user,
                                const nghttp2_option *option, nghttp2_mem *memory)
{
    session_new real = (session_new)dlsym(RTLD_NEXT, "nghttp2_session_client_new3");
    int result;

    if (!memory)
        return real(session, callbacks, user, option, NULL);
    resize = memory->realloc;
    memory->realloc = resize_in_any_case;
    result = real(session, callbacks, user, option, memory);
    if (result == 0 && first_upstream_id)
        nghttp2_session_set_next_stream_id(*session, first_upstream_id);
    return result;
}

int nghttp2_session_server_new3(nghttp2_session **session,
                                const nghttp2_session_callbacks *callbacks, void *user,
                                const nghttp2_option *option, nghttp2_mem *memory)
{
    session_new real = (session_new)dlsym(RTLD_NEXT, "nghttp2_session_server_new3");

    if (memory) {
        resize = memory->realloc;
        memory->realloc = resize_in_any_case;
    }
    return real(session, callbacks, user, option, memory);
}

/* ---- requests ---- */

static struct http2_peer client;
static int client_fd;
static struct session *session;

static void begin_client(void)
{
    session = arrive(&client_fd);
    peer_open(&client, client_fd, false);
    for (int i = 0; i < REQUESTS; i++)
        peer_request(&client, i, i == 1 ? BODY : i == 2 ? 100 : 0);
}

static void end_client(void)
{
    peer_close(&client);
    for (int i = 0; i < PATIENCE && serving.closed < serving.sessions; i++)
        pump(NULL);
    assert_int_equal(serving.closed, serving.sessions);
}

/* Every answer that is complete is that of its request. True: each has one, or was reset. */
static bool check(void)
{
    int done = 0;

    for (int i = 0; i < REQUESTS; i++) {
        const struct http2_answer *answer = &client.answers[i];

        if (answer->closed && answer->error == 0 && answer->status == 200) {
            assert_int_equal(answer->first, '0' + i);
            assert_int_equal(answer->size, 1 + answer->sent);
        } else if (answer->closed && answer->error == 0) {
            assert_in_range(answer->status, 500, 599);
        }
        done += answer->closed;
    }
    return done == REQUESTS;
}

/* So late that requests are hedged, and each third time not at all. */
static void serve_badly(struct upstream_peer *peer)
{
    static unsigned turns;

    if (peer->size == 0 || worker->loop.now_ms % 4 > 0)
        return;
    if (turns++ % 3 == 0) {
        close(peer->fd);
        peer->fd = -1;
    } else {
        serve_http2(peer);
    }
}

static void run_requests(unsigned failing, bool resilient)
{
    serving_begin(DP_HTTP2, 2)->timeout_ms = 0;
    if (resilient)
        serving_be_resilient(DP_HTTP2);
    serving_offer();
    failing_set(failing);
    begin_client();
    for (int i = 0; i < PATIENCE && !client.ended && !check(); i++) {
        peer_turn(&client);
        pump(resilient ? serve_badly : serve_http2);
    }
    assert_true(check() || client.ended);
    end_client();
}

static void any_allocation_fails(bool resilient)
{
    const uint32_t helps = 1u << DP_FLAG_RETRIED | 1u << DP_FLAG_HEDGED | 1u << DP_FLAG_MIRRORED |
                           1u << DP_FLAG_FAULT_DELAY;
    uint32_t flags = 0;
    unsigned failing = 0;
    bool failed;

    do {
        run_requests(++failing, resilient);
        failed = failing_take();
        if (!failed)
            assert_int_equal(serving.requests, REQUESTS);
        if (!failed && !resilient)
            assert_int_equal(serving.flags, 0);
        flags |= serving.flags;
        close_http2_peers();
        serving_end();
    } while (failed);
    if (resilient)
        assert_int_equal(flags & helps, helps); /* in one run or the other */
    assert_in_range(failing, 100, 5000);
}

static void test_any_allocation_fails(void **state)
{
    (void)state;
    any_allocation_fails(false);
}

static void test_any_allocation_fails_of_what_helps(void **state)
{
    (void)state;
    any_allocation_fails(true);
}

/* ---- the end of ids ---- */

enum { LAST_ID = INT32_MAX };

static void answer_all(void)
{
    for (int i = 0; i < PATIENCE && !check(); i++) {
        peer_turn(&client);
        pump(serve_http2);
    }
    assert_true(check());
    for (int i = 0; i < REQUESTS; i++)
        assert_int_equal(client.answers[i].status, 200);
}

/* There may be one at a time: the next one waits until those on the last one are answered. */
static void test_an_upstream_without_ids_gets_another_connection(void **state)
{
    struct dp_service *service = serving_begin(DP_HTTP2, 1);

    (void)state;
    service->connections = 1;
    serving_offer();
    first_upstream_id = LAST_ID - 2;
    begin_client();
    answer_all();
    first_upstream_id = 0;
    assert_int_equal(serving.peer_count, REQUESTS);
    end_client();
    close_http2_peers();
    serving_end();
}

static void test_a_client_near_its_last_id_is_sent_away(void **state)
{
    (void)state;
    serving_begin(DP_HTTP2, 1);
    serving_offer();
    session = arrive(&client_fd);
    peer_open(&client, client_fd, false);
    nghttp2_session_set_next_stream_id(client.session, LAST_ID - 2 * (REQUESTS - 1));
    for (int i = 0; i < REQUESTS; i++)
        peer_request(&client, i, 100 * i);
    answer_all();
    assert_int_equal(client.answers[REQUESTS - 1].id, LAST_ID);
    assert_true(client.sent_away);
    end_client();
    close_http2_peers();
    serving_end();
}

/* ---- its share ---- */

static struct shares *shares(void)
{
    return &worker->streams->shares;
}

/* Alone it has 7/8 of two: one, and what is left of the other. */
static void test_a_client_with_too_many_streams_has_the_newest_refused(void **state)
{
    int refused = 0;

    (void)state;
    serving_begin(DP_HTTP2, 1);
    serving_offer();
    shares()->most_streams = 2;
    begin_client();
    for (int i = 0; i < PATIENCE && !check(); i++) {
        peer_turn(&client);
        pump(serve_http2);
    }
    assert_true(check());
    for (int i = 0; i < REQUESTS; i++) {
        refused += client.answers[i].error == NGHTTP2_REFUSED_STREAM;
        if (i < 2)
            assert_int_equal(client.answers[i].status, 200);
    }
    assert_int_equal(refused, REQUESTS - 2);
    assert_int_equal(counter_read(&worker->counters.streams_refused), refused);
    assert_int_equal(shares()->streams, 0);
    end_client();
    close_http2_peers();
    serving_end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_allocation_fails),
        cmocka_unit_test(test_any_allocation_fails_of_what_helps),
        cmocka_unit_test(test_an_upstream_without_ids_gets_another_connection),
        cmocka_unit_test(test_a_client_near_its_last_id_is_sent_away),
        cmocka_unit_test(test_a_client_with_too_many_streams_has_the_newest_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
