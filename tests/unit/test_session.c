#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "intercept/clients.h"
#include "intercept/listener.h"
#include "intercept/session.h"
#include "net/socket.h"
#include "routed.h"

enum { STATES = SESSION_CLOSED + 1, FDS = 4 };

static struct routed_worker routed;
static struct worker *const worker = &routed.worker;
static struct clients clients;
static const struct listener listener;
static struct session *session;
static int peer;
static char calls[64]; /* a letter each, in order */

static void called(char letter)
{
    size_t length = strlen(calls);

    assert_in_range(length, 0, sizeof calls - 2);
    calls[length] = letter;
}

static void opened(struct session *of)
{
    (void)of;
    called('o');
}

static void arrived(struct session *of)
{
    assert_int_equal(session_state(of), SESSION_CONNECTING);
    called('a');
}

static void closed(struct session *of)
{
    assert_int_not_equal(session_state(of), SESSION_CLOSED); /* not yet */
    assert_false(channel_is_open(&of->downstream));
    called('c');
}

static const struct session_handler handler = {
    .opened = opened, .arrived = arrived, .closed = closed};

static int refused_with;
static bool takes_a_moment;

static bool op_refuse(struct session *of, int error, bool away)
{
    (void)of;
    refused_with = away ? -error : error;
    called('r');
    return takes_a_moment;
}

static void op_abandon(struct session *of, int error)
{
    (void)of;
    assert_true(error > 0);
    called('A');
}

static void op_release(struct session *of)
{
    assert_false(channel_is_open(&of->downstream));
    called('R');
}

static const struct intercept_ops ops = {
    .complete = session_completed,
    .refuse = op_refuse,
    .abandon = op_abandon,
    .release = op_release,
};

static void service_completed(struct session *of)
{
    assert_false(timer_is_set(&of->timer));
    session_enter(of, SESSION_SERVED);
    called('C');
}

static void service_close(struct session *of, bool reset)
{
    (void)of;
    called(reset ? 'X' : 'E');
}

static const struct serving service = {.completed = service_completed, .close = service_close};

static void open_session(const struct intercept_ops *with)
{
    int fds[2];

    assert_true(budget_reserve(&routed.budget, FDS));
    session = session_open(worker, &listener, with, FDS);
    assert_non_null(session);
    tcp_pair(fds);
    peer = fds[1];
    session->downstream.watch.fd = fds[0];
    assert_int_equal(socket_tune(fds[0]), 0);
    assert_int_equal(channel_watch(&worker->loop, &session->downstream), 0);
}

static int set_up(void **state)
{
    (void)state;
    routed_open(&routed);
    worker->clients = &clients;
    worker->handler = &handler;
    memset(calls, 0, sizeof calls);
    takes_a_moment = false;
    open_session(&ops);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    if (session_state(session) != SESSION_CLOSED)
        session_close(session, DP_END_EOF, 0);
    assert_ptr_equal(worker->closed, session);
    worker->closed = NULL;
    session_free(session);
    close(peer);
    assert_int_equal(atomic_load(&clients.waiting[0]), 0);
    routed_close(&routed);
    return 0;
}

/* ---- states ---- */

static void enter(void *wanted)
{
    session_enter(session, *(enum session_state *)wanted);
}

static void test_only_some_states_follow_others(void **state)
{
    /* By state, in the order of enum session_state: which may follow. */
    static const char *const may[STATES] = {
        ".EC.F.DX", "..C....X", "...PFS.X", "....FS.X",
        ".......X", ".......X", ".......X", "........",
    };

    (void)state;
    for (int from = 0; from < STATES; from++)
        for (int to = 0; to < STATES; to++) {
            enum session_state wanted = (enum session_state)to;

            atomic_store(&session->state, (uint8_t)from);
            if (aborts(enter, &wanted) != (may[from][to] == '.'))
                fail_msg("from %d to %d", from, to);
        }
    atomic_store(&session->state, SESSION_ARRIVING);
}

static void test_a_session_that_is_served_and_ends_in_order(void **state)
{
    (void)state;
    assert_int_equal(budget_used(&routed.budget), FDS);
    session->serving = &service;
    session_arrived(session);
    session->ops->complete(session);
    assert_int_equal(session_state(session), SESSION_SERVED);
    assert_int_equal(budget_used(&routed.budget), FDS_PER_RELAY); /* it needs no more */
    session_close(session, DP_END_EOF, 0);
    assert_string_equal(calls, "oaCAERc");
    assert_int_equal(budget_used(&routed.budget), 0);
    assert_int_equal(worker->loop.timers.reserved, 0);
    assert_int_equal(counter_read(&worker->counters.closed), 1);
    await_events(peer, POLLIN);
    assert_int_equal(recv(peer, &(char){0}, 1, 0), 0);
}

static void test_everything_but_an_end_in_order_is_a_reset(void **state)
{
    (void)state;
    session->serving = &service;
    session_arrived(session);
    session_close(session, DP_END_DRAIN_LIMIT, 0);
    assert_string_equal(calls, "oaAXRc");
    await_events(peer, POLLIN);
    assert_int_equal(recv(peer, &(char){0}, 1, 0), -1);
    assert_int_equal(errno, ECONNRESET);
}

static void test_a_refusal_that_takes_a_moment(void **state)
{
    (void)state;
    takes_a_moment = true;
    session->serving = &service;
    session_arrived(session);
    session_refuse(session, DP_END_UPSTREAM_CONNECT, EHOSTUNREACH);
    assert_int_equal(refused_with, EHOSTUNREACH);
    assert_int_equal(session_state(session), SESSION_FAILING);
    assert_int_equal(session->end, DP_END_UPSTREAM_CONNECT);
    assert_string_equal(calls, "oarX"); /* nobody serves it any more */
    session_close(session, (enum dp_end)session->end, session->error);
    assert_string_equal(calls, "oarXARc");
}

static void test_a_refusal_for_a_reason_of_ours(void **state)
{
    (void)state;
    session_arrived(session);
    session_refuse(session, DP_END_NO_RESOURCES, EMFILE);
    assert_int_equal(refused_with, -ECONNREFUSED); /* not ours, and `away` */
    assert_int_equal(session_state(session), SESSION_CLOSED);
    assert_int_equal(session->error, EMFILE);
    session_refuse(session, DP_END_EOF, 0); /* changes nothing */
    assert_string_equal(calls, "oarARc");
    assert_int_equal(session->end, DP_END_NO_RESOURCES);
}

static void test_a_timer_ends_what_says_nothing(void **state)
{
    (void)state;
    loop_update_clock(&worker->loop);
    loop_set_timer(&worker->loop, &session->timer, 5, session_arrival_expired);
    while (session_state(session) != SESSION_CLOSED)
        loop_turn(&worker->loop);
    assert_int_equal(session->end, DP_END_HEADER_TIMEOUT);
}

static void test_a_reset_ends_one_that_waits(void **state)
{
    static const struct linger reset = {.l_onoff = 1};

    (void)state;
    session_downstream_waits(session);
    assert_return_code(setsockopt(peer, SOL_SOCKET, SO_LINGER, &reset, sizeof reset), 0);
    close(peer);
    while (session_state(session) != SESSION_CLOSED)
        loop_turn(&worker->loop);
    peer = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_int_equal(session->end, DP_END_DOWNSTREAM_RESET);
}

static void free_it(void *of)
{
    session_free(of);
}

static void close_it(void *of)
{
    session_close(of, DP_END_EOF, 0);
}

static void test_what_is_wrong_at_its_end_is_found(void **state)
{
    (void)state;
    assert_true(aborts(free_it, session)); /* open */
    session_close(session, DP_END_EOF, 0);
    assert_true(aborts(close_it, session)); /* twice */
    assert_false(aborts(free_it, session));
}

static void test_whichever_allocation_fails_nothing_is_left(void **state)
{
    struct loop *loop = &worker->loop;
    unsigned failures = 0;

    /* Without any place that was reserved before. */
    tear_down(state);
    routed_open(&routed);
    worker->clients = &clients;
    worker->handler = &handler;
    for (unsigned number = 1;; number++) {
        assert_true(budget_reserve(&routed.budget, FDS));
        failing_set(number);
        session = session_open(worker, &listener, &ops, FDS);
        if (!failing_take())
            break;
        assert_null(session);
        assert_int_equal(budget_used(&routed.budget), 0);
        assert_int_equal(loop->timers.reserved, 0);
        failures++;
    }
    assert_int_equal(failures, 2);
    peer = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_only_some_states_follow_others),
        TEST(test_a_session_that_is_served_and_ends_in_order),
        TEST(test_everything_but_an_end_in_order_is_a_reset),
        TEST(test_a_refusal_that_takes_a_moment),
        TEST(test_a_refusal_for_a_reason_of_ours),
        TEST(test_a_timer_ends_what_says_nothing),
        TEST(test_a_reset_ends_one_that_waits),
        TEST(test_what_is_wrong_at_its_end_is_found),
        TEST(test_whichever_allocation_fails_nothing_is_left),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
