#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "routed.h"
#include "upstream/connector.h"

enum { MOST = 40, OPEN = INT32_MIN };

static struct routed_worker routed;
static struct worker *const worker = &routed.worker;
static const struct dp_listener listener = {.transport = DP_TRANSPORT_HEADER};
static struct origin origin;
static struct mosnhook_address endpoints[MOST];
static int sockets[MOST]; /* behind the endpoints */
static uint32_t count;
static struct connector connector;
static struct cluster *cluster;
static int result; /* OPEN: it is not done */

static int set_up(void **state)
{
    (void)state;
    routed_open(&routed);
    count = 0;
    result = OPEN;
    origin = (struct origin){.listener = &listener, .original_destination = on_loopback(80)};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    if (result >= 0)
        close(result);
    for (uint32_t i = 0; i < count; i++)
        close(sockets[i]);
    choice_release(&connector.choice);
    routed_close(&routed);
    return 0;
}

static void add_open(void)
{
    sockets[count] = listen_on_loopback(&endpoints[count]);
    count++;
}

static void add_closed(void)
{
    sockets[count] = closed_port(&endpoints[count]);
    count++;
}

/* It answers nobody until somebody is accepted; `*waits` is in its queue. */
static void add_silent(int *waits)
{
    add_open();
    *waits = fill_queue(sockets[count - 1]);
}

static void done(struct connector *of, int fd)
{
    assert_ptr_equal(of, &connector);
    assert_int_equal(result, OPEN); /* once */
    result = fd;
}

static void start(void)
{
    struct dp_route route = {.endpoint_count = count};

    set_route(&routed, DP_OUTBOUND, &route, endpoints);
    loop_update_clock(&worker->loop);
    connector = (struct connector){.worker = worker, .origin = &origin, .done = done};
    assert_int_equal(choice_begin(&connector.choice, worker, &origin), DP_END_NONE);
    connector.choice.first = 0;
    cluster = connector.choice.cluster;
    connector_start(&connector);
}

static void await_done(void)
{
    while (result == OPEN)
        loop_turn(&worker->loop);
}

/* It belongs to nobody else: nothing is watched, set or promised. */
static void assert_connected_to(uint32_t index)
{
    struct sockaddr_in name;
    socklen_t length = sizeof name;

    assert_in_range(result, 0, INT32_MAX);
    assert_return_code(getpeername(result, (struct sockaddr *)&name, &length), 0);
    assert_int_equal(ntohs(name.sin_port), endpoints[index].port);
    assert_true(fcntl(result, F_GETFL) & O_NONBLOCK);
    assert_true(fcntl(result, F_GETFD) & FD_CLOEXEC);
    assert_int_equal(epoll_ctl(worker->loop.epoll, EPOLL_CTL_DEL, result, NULL), -1);
    assert_int_equal(worker->loop.timers.reserved, 0);
    assert_int_equal(worker->loop.tasks.count, 0);
    assert_memory_equal(&connector.choice.upstream, &endpoints[index], sizeof endpoints[index]);
    assert_int_equal(atomic_load(&cluster->endpoints[index]->active), 1);
}

static bool is_ejected(uint32_t index)
{
    return atomic_load(&cluster->endpoints[index]->failed_ms) != 0;
}

static void test_on_this_host_it_is_connected_at_once(void **state)
{
    (void)state;
    add_open();
    start();
    assert_connected_to(0);
}

static void test_after_a_refusal_comes_the_next_one(void **state)
{
    (void)state;
    add_closed();
    add_open();
    start();
    assert_connected_to(1);
    assert_true(is_ejected(0));
    assert_false(is_ejected(1));
    assert_int_equal(counter_read(&worker->counters.connect_failures), 1);
}

static void test_when_all_refuse_it_says_so_once(void **state)
{
    (void)state;
    add_closed();
    add_closed();
    start();
    assert_int_equal(result, -ECONNREFUSED);
    assert_null(connector.choice.endpoint);
    assert_int_equal(counter_read(&worker->counters.connect_failures), 2);
    assert_int_equal(worker->loop.timers.reserved, 0);
}

static void test_many_that_refuse_are_tried_in_several_turns(void **state)
{
    (void)state;
    while (count < MOST - 1)
        add_closed();
    add_open();
    start();
    assert_int_equal(result, OPEN); /* others have their turns */
    await_done();
    assert_connected_to(MOST - 1);
}

static void test_between_two_turns_it_can_be_cancelled(void **state)
{
    (void)state;
    while (count < MOST)
        add_closed();
    start();
    assert_int_equal(worker->loop.tasks.count, 1);
    connector_cancel(&connector);
    assert_int_equal(worker->loop.tasks.count, 0);
    assert_int_equal(result, OPEN);
}

static void test_one_that_does_not_answer_in_time_is_left(void **state)
{
    int waits;

    (void)state;
    add_silent(&waits);
    add_open();
    atomic_store(&routed.timeouts.connect_ms, 20);
    start();
    assert_int_equal(result, OPEN);
    await_done();
    assert_connected_to(1);
    assert_true(is_ejected(0));
    close(waits);
}

static void test_when_nobody_answers_in_time_it_says_so(void **state)
{
    int waits;

    (void)state;
    add_silent(&waits);
    atomic_store(&routed.timeouts.connect_ms, 20);
    start();
    await_done();
    assert_int_equal(result, -ETIMEDOUT);
    close(waits);
}

static void test_one_that_answers_late_is_connected(void **state)
{
    int waits, taken;

    (void)state;
    add_silent(&waits);
    start();
    assert_int_equal(result, OPEN);
    taken = accept(sockets[0], NULL, NULL);
    await_done(); /* the kernel asks again after a second */
    assert_connected_to(0);
    close(waits);
    close(taken);
}

static void test_one_that_refuses_late_is_followed_by_the_next(void **state)
{
    int waits;

    (void)state;
    add_silent(&waits);
    add_open();
    start();
    assert_int_equal(result, OPEN);
    close(sockets[0]);
    sockets[0] = -1;
    await_done();
    assert_connected_to(1);
    assert_true(is_ejected(0));
    close(waits);
}

static void test_while_it_connects_it_can_be_cancelled(void **state)
{
    int waits;

    (void)state;
    add_silent(&waits);
    start();
    assert_int_equal(atomic_load(&cluster->endpoints[0]->active), 1);
    assert_int_equal(worker->loop.timers.reserved, 1);
    connector_cancel(&connector);
    assert_int_equal(worker->loop.timers.reserved, 0);
    assert_int_equal(result, OPEN);
    close(waits);
}

/* The answer is there, but another event of the same turn cancels. */
static void test_when_it_has_just_connected_it_can_be_cancelled(void **state)
{
    int waits, taken;

    (void)state;
    add_silent(&waits);
    start();
    taken = accept(sockets[0], NULL, NULL);
    await_events(connector.watch.fd, POLLOUT);
    connector_cancel(&connector);
    assert_int_equal(epoll_wait(worker->loop.epoll, &(struct epoll_event){0}, 1, 0), 0);
    assert_int_equal(result, OPEN);
    close(waits);
    close(taken);
}

static void test_our_own_shortage_is_not_the_endpoints_fault(void **state)
{
    struct rlimit limit, none;

    (void)state;
    add_open();
    getrlimit(RLIMIT_NOFILE, &limit);
    none = (struct rlimit){.rlim_cur = 0, .rlim_max = limit.rlim_max};
    assert_return_code(setrlimit(RLIMIT_NOFILE, &none), 0);
    start();
    setrlimit(RLIMIT_NOFILE, &limit);
    assert_int_equal(result, -EMFILE);
    assert_false(is_ejected(0));
}

static void test_without_memory_it_says_so(void **state)
{
    struct dp_route route = {.endpoint_count = 1};

    (void)state;
    add_open();
    set_route(&routed, DP_OUTBOUND, &route, endpoints);
    connector = (struct connector){.worker = worker, .origin = &origin, .done = done};
    assert_int_equal(choice_begin(&connector.choice, worker, &origin), DP_END_NONE);
    failing_set(1);
    connector_start(&connector);
    assert_true(failing_take());
    assert_int_equal(result, -ENOMEM);
}

static void test_what_an_errno_means_for_the_report(void **state)
{
    (void)state;
    assert_int_equal(connector_end(ECONNREFUSED), DP_END_UPSTREAM_CONNECT);
    assert_int_equal(connector_end(ETIMEDOUT), DP_END_UPSTREAM_TIMEOUT);
    assert_int_equal(connector_end(EMFILE), DP_END_NO_RESOURCES);
    assert_int_equal(connector_end(ENOMEM), DP_END_NO_RESOURCES);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_on_this_host_it_is_connected_at_once),
        TEST(test_after_a_refusal_comes_the_next_one),
        TEST(test_when_all_refuse_it_says_so_once),
        TEST(test_many_that_refuse_are_tried_in_several_turns),
        TEST(test_between_two_turns_it_can_be_cancelled),
        TEST(test_one_that_does_not_answer_in_time_is_left),
        TEST(test_when_nobody_answers_in_time_it_says_so),
        TEST(test_one_that_answers_late_is_connected),
        TEST(test_one_that_refuses_late_is_followed_by_the_next),
        TEST(test_while_it_connects_it_can_be_cancelled),
        TEST(test_when_it_has_just_connected_it_can_be_cancelled),
        TEST(test_our_own_shortage_is_not_the_endpoints_fault),
        TEST(test_without_memory_it_says_so),
        TEST(test_what_an_errno_means_for_the_report),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
