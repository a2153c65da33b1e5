#include "requests.h"

#include "l7/pool.h"

static int client;
static struct session *session;

static int set_up(void **state)
{
    (void)state;
    client = -1;
    serving_begin(DP_HTTP1, 1);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    if (session && session_state(session) != SESSION_CLOSED)
        session_close(session, DP_END_EOF, 0);
    if (client >= 0)
        close(client);
    serving_end();
    return 0;
}

static void await_requests(unsigned count)
{
    for (int i = 0; i < PATIENCE && serving.requests < count; i++)
        pump(NULL);
    assert_int_equal(serving.requests, count);
}

static void say(const char *text)
{
    assert_int_equal(send(client, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

static void drain(void)
{
    atomic_store(&serving.listeners.draining, true);
    streams_look(worker);
}

static void never(struct session *of)
{
    session_enter(of, SESSION_COMPLETING);
}

static const struct intercept_ops not_yet = {.complete = never};

/* As a parked application's: it takes a moment until it is connected to us. */
static void test_drain_finds_a_session_that_is_not_completed(void **state)
{
    int fds[2];

    (void)state;
    serving_offer();
    tcp_pair(fds);
    client = fds[0];
    assert_true(budget_reserve(&serving.routed.budget, FDS));
    loop_update_clock(&worker->loop);
    session = session_open(worker, &serving.listener, &not_yet, FDS);
    session->downstream.watch.fd = fds[1];
    assert_int_equal(channel_watch(&worker->loop, &session->downstream), 0);
    session_arrived(session);
    drain();
    session_completed(session);
    say("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    pump(NULL);
    assert_int_equal(session_state(session), SESSION_SERVED);
}

static void test_drain_closes_an_idle_one(void **state)
{
    char byte;
    ssize_t count = -1;

    (void)state;
    serving_offer();
    session = arrive(&client);
    pump(NULL);
    ((struct downstream *)session->served)->wire.last_active_ms = 0; /* long ago */
    drain();
    for (int i = 0; i < PATIENCE && count != 0; i++) {
        pump(NULL);
        count = recv(client, &byte, 1, 0);
    }
    assert_int_equal(count, 0);
}

/* The map of pools shrinks while it is emptied. */
static void test_many_pools_are_closed(void **state)
{
    static const struct dp_listener listener = {.transport = DP_TRANSPORT_LISTENER};

    (void)state;
    serving_offer();
    for (uint16_t port = 1; port <= 1000; port++) {
        struct pool_key key = {
            .address = on_loopback(port), .listener = &listener, .codec = codec_of(DP_HTTP1)};

        assert_non_null(pool_find(worker, &key));
    }
    session = NULL;
}

static void test_stops_while_it_connects(void **state)
{
    int waits = fill_queue(serving.accepting[0]);

    (void)state;
    serving_offer();
    session = arrive(&client);
    say("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    for (int i = 0; i < PATIENCE && counter_read(&the_standing()->tallies[0].pending) == 0; i++) {
        task_schedule(&worker->loop.tasks, &no_wait);
        loop_turn(&worker->loop);
    }
    assert_int_equal(counter_read(&the_standing()->tallies[0].pending), 1);
    session_close(session, DP_END_DRAIN_LIMIT, 0);
    assert_int_equal(serving.requests, 1);
    assert_int_equal(serving.flags, 1u << DP_FLAG_DRAIN_LIMIT);
    session = NULL;
    close(waits);
}

static void test_endpoint_that_is_removed_keeps_no_connection(void **state)
{
    (void)state;
    serving_offer();
    session = arrive(&client);
    say("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    for (int i = 0; i < PATIENCE && !(serving.peer_count && serving.peers[0].size); i++)
        pump(NULL);
    serving.written.services[0].endpoint_count = 0;
    serving_offer();
    while (!router_adopt(worker))
        pump(NULL);
    streams_look(worker);
    assert_int_equal(counter_read(&the_standing()->tallies[0].connections), 1);
    assert_int_equal(send(serving.peers[0].fd, "HTTP/1.1 204 No\r\n\r\n", 19, 0), 19);
    await_requests(1);
    assert_int_equal(serving.flags, 0);
    assert_int_equal(counter_read(&the_standing()->tallies[0].connections), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_drain_finds_a_session_that_is_not_completed, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_drain_closes_an_idle_one, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_many_pools_are_closed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_stops_while_it_connects, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_endpoint_that_is_removed_keeps_no_connection, set_up,
                                        tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
