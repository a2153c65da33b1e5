#include "unit.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/foreign.h"

enum {
    SOMEBODY = 4711,
    THREADS = 4, /* that close what one user passed */
    CLOSES = THREADS + 2,
};

static struct foreign *foreign;

static int set_up(void **state)
{
    (void)state;
    foreign = foreign_create();
    assert_non_null(foreign);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    assert_int_equal(foreign_pending(foreign), 0);
    foreign_release(foreign);
    return 0;
}

/* For what other threads do. */
static void await_pending(int count)
{
    while (foreign_pending(foreign) != count)
        usleep(1000);
}

static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

static void test_only_root_and_we_ourselves_are_trusted(void **state)
{
    (void)state;
    assert_true(foreign_is_trusted(foreign, 0));
    assert_true(foreign_is_trusted(foreign, geteuid()));
    assert_false(foreign_is_trusted(foreign, SOMEBODY));
    assert_false(foreign_is_trusted(foreign, UINT32_MAX));
}

static void test_only_tcp_sockets_are_taken_for_tcp_sockets(void **state)
{
    static const struct {
        int domain, type, protocol, found;
    } kinds[] = {
        {AF_INET, SOCK_STREAM, 0, IPPROTO_TCP},
        {AF_INET6, SOCK_STREAM, 0, IPPROTO_TCP},
        {AF_INET, SOCK_STREAM, IPPROTO_MPTCP, IPPROTO_MPTCP},
        {AF_INET, SOCK_DGRAM, 0, -1},
        {AF_UNIX, SOCK_STREAM, 0, -1},
        {AF_INET, SOCK_RAW, IPPROTO_TCP, -1},
        {AF_NETLINK, SOCK_RAW, IPPROTO_TCP, -1}, /* 6 is a protocol there, too */
    };
    int ends[2];

    (void)state;
    for (size_t i = 0; i < COUNT(kinds); i++) {
        int fd = socket(kinds[i].domain, kinds[i].type, kinds[i].protocol);

        if (fd < 0) /* not in this kernel, or not for us */
            continue;
        assert_int_equal(foreign_protocol(fd), kinds[i].found);
        close(fd);
    }
    assert_return_code(pipe(ends), 0);
    assert_int_equal(foreign_protocol(ends[0]), -1);
    assert_int_equal(foreign_protocol(-1), -1);
    close(ends[0]);
    close(ends[1]);
}

static void *socket_elsewhere(void *result)
{
    *(int *)result = unshare(CLONE_NEWNET) < 0 ? -1 : socket(AF_INET, SOCK_STREAM, 0);
    return NULL;
}

static void test_a_socket_of_another_namespace_is_not_here(void **state)
{
    int here = socket(AF_INET, SOCK_STREAM, 0), elsewhere = -1;
    pthread_t thread;

    (void)state;
    assert_true(foreign_is_here(foreign, here));
    close(here);
    assert_int_equal(pthread_create(&thread, NULL, socket_elsewhere, &elsewhere), 0);
    pthread_join(thread, NULL);
    if (elsewhere < 0 || !foreign_namespace_is_known(foreign))
        skip();
    assert_false(foreign_is_here(foreign, elsewhere));
    close(elsewhere);
}

static void test_a_close_that_waits_keeps_nobody(void **state)
{
    static const uint32_t users[] = {SOMEBODY, 0};
    int peer, fd;

    (void)state;
    for (size_t i = 0; i < COUNT(users); i++) {
        fd = lingering_socket(&peer);
        foreign_close(foreign, users[i], &fd);
        assert_int_equal(fd, -1);
        assert_int_equal(foreign_pending(foreign), 1); /* it waits, but we do not */
        close(peer);
        await_pending(0);
    }
}

/* close() gives the number back before it waits. */
static int count_open(const int *fds, int count)
{
    int open = 0;

    for (int i = 0; i < count; i++)
        open += is_open(fds[i]);
    return open;
}

static void test_a_user_whose_closes_wait_keeps_no_others(void **state)
{
    int fds[CLOSES], peers[CLOSES], other[2];

    (void)state;
    for (int i = 0; i < CLOSES; i++)
        fds[i] = lingering_socket(&peers[i]);
    for (int i = 0; i < CLOSES; i++) {
        int fd = fds[i];

        foreign_close(foreign, SOMEBODY, &fd);
    }
    while (count_open(fds, CLOSES) > CLOSES - THREADS) /* all of that user's threads wait */
        usleep(1000);
    tcp_pair(other);
    foreign_close(foreign, SOMEBODY + 1, &other[0]);
    await_pending(CLOSES);
    foreign_close(foreign, 0, &other[1]);
    assert_int_equal(foreign_pending(foreign), CLOSES);
    for (int i = 0; i < CLOSES; i++)
        close(peers[i]);
    await_pending(0);
}

static void test_our_own_and_roots_are_closed_at_once(void **state)
{
    int fds[2], none = -1, kept;

    (void)state;
    tcp_pair(fds);
    kept = fds[0];
    foreign_close(foreign, 0, &fds[0]);
    assert_int_equal(fds[0], -1);
    assert_false(is_open(kept));
    foreign_close(foreign, SOMEBODY, &none);
    foreign_close(foreign, 0, &none);
    assert_int_equal(foreign_pending(foreign), 0);
    close(fds[1]);
}

static void test_what_is_no_socket_is_closed_elsewhere(void **state)
{
    int ends[2], kept;

    (void)state;
    assert_return_code(pipe(ends), 0);
    kept = ends[0];
    foreign_close(foreign, 0, &ends[0]);
    assert_int_equal(ends[0], -1);
    await_pending(0);
    assert_false(is_open(kept));
    close(ends[1]);
}

static void never(struct watch *watch, uint32_t events)
{
    (void)watch;
    (void)events;
    fail();
}

static void test_a_watch_that_is_closed_is_told_nothing_more(void **state)
{
    static const uint32_t users[] = {SOMEBODY, 0};
    static struct worker worker;

    (void)state;
    worker.foreign = foreign;
    for (size_t i = 0; i < COUNT(users); i++) {
        struct watch watch = {.ready = never};
        int ends[2];

        assert_int_equal(loop_open(&worker.loop), 0);
        assert_return_code(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
        assert_int_equal(write(ends[1], "x", 1), 1);
        watch.fd = ends[0];
        assert_int_equal(loop_watch(&worker.loop, &watch, EPOLLIN), 0);
        foreign_close_watch(&worker, users[i], &watch);
        assert_int_equal(watch.fd, -1);
        foreign_close_watch(&worker, users[i], &watch);
        assert_int_equal(epoll_wait(worker.loop.epoll, &(struct epoll_event){0}, 1, 0), 0);
        await_pending(0);
        loop_close(&worker.loop);
        close(ends[1]);
    }
}

static void test_without_memory_it_closes_by_itself(void **state)
{
    int fds[2], kept;

    (void)state;
    failing_set(1);
    assert_null(foreign_create());
    tcp_pair(fds);
    kept = fds[0];
    failing_set(1);
    foreign_close(foreign, SOMEBODY, &fds[0]);
    assert_true(failing_take());
    assert_int_equal(foreign_pending(foreign), 0);
    assert_false(is_open(kept));
    close(fds[1]);
}

/* The sanitizers tell what goes wrong. */
static void test_it_outlives_its_release_while_a_close_waits(void **state)
{
    struct foreign *released = foreign_create();
    int peer, fd = lingering_socket(&peer);

    (void)state;
    foreign_close(released, SOMEBODY, &fd);
    foreign_release(released);
    close(peer);
    foreign_release(NULL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_only_root_and_we_ourselves_are_trusted),
        TEST(test_only_tcp_sockets_are_taken_for_tcp_sockets),
        TEST(test_a_socket_of_another_namespace_is_not_here),
        TEST(test_a_close_that_waits_keeps_nobody),
        TEST(test_a_user_whose_closes_wait_keeps_no_others),
        TEST(test_our_own_and_roots_are_closed_at_once),
        TEST(test_what_is_no_socket_is_closed_elsewhere),
        TEST(test_a_watch_that_is_closed_is_told_nothing_more),
        TEST(test_without_memory_it_closes_by_itself),
        TEST(test_it_outlives_its_release_while_a_close_waits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
