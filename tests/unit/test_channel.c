#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/owner.h"
#include "net/channel.h"
#include "net/socket.h"

struct side {
    struct channel channel;
    unsigned told;
    uint32_t events;
    struct side *reads; /* another one, whose bytes it takes */
};

static struct loop loop;
static struct side side; /* with a peer that the tests speak for */
static int peer;

static void note(struct channel *channel, uint32_t events)
{
    struct side *noting = OWNER(channel, struct side, channel);
    char bytes[64];

    noting->told++;
    noting->events = events;
    if (noting->reads)
        assert_true(channel_read(&noting->reads->channel, bytes, sizeof bytes) > 0);
}

static int open_side(struct side *opened)
{
    int fds[2];

    tcp_pair(fds);
    assert_int_equal(socket_tune(fds[0]), 0);
    memset(opened, 0, sizeof *opened);
    channel_init(&opened->channel);
    assert_false(channel_is_open(&opened->channel));
    opened->channel.watch.fd = fds[0];
    opened->channel.changed = note;
    assert_int_equal(channel_watch(&loop, &opened->channel), 0);
    assert_true(channel_is_open(&opened->channel));
    return fds[1];
}

static int set_up(void **state)
{
    (void)state;
    loop = (struct loop){.epoll = -1};
    assert_int_equal(loop_open(&loop), 0);
    peer = open_side(&side);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    channel_close(&loop, &side.channel, true);
    if (peer >= 0)
        close(peer);
    loop_close(&loop);
    return 0;
}

/* Turns until the side's socket has what poll() calls `events`, and the side knows it. */
static void turn_with(const struct side *of, short events)
{
    unsigned told = of->told;

    await_events(of->channel.watch.fd, events);
    while (of->told == told)
        loop_turn(&loop);
}

static void say(const char *text, int flags)
{
    assert_int_equal(send(peer, text, strlen(text), MSG_NOSIGNAL | flags), strlen(text));
}

static void expect(const char *text)
{
    char bytes[64] = "";

    assert_int_equal(channel_read(&side.channel, bytes, sizeof bytes), strlen(text));
    assert_string_equal(bytes, text);
}

static void test_what_came_is_noted_and_told_once(void **state)
{
    (void)state;
    turn_with(&side, POLLOUT);
    assert_true(side.channel.writable);
    assert_false(side.channel.readable);
    assert_int_equal(side.events, EPOLLOUT);
    assert_int_equal(epoll_wait(loop.epoll, &(struct epoll_event){0}, 1, 0), 0);
    say("hello", 0);
    turn_with(&side, POLLIN);
    assert_true(side.channel.readable);
    assert_false(side.channel.hung_up);
    assert_int_equal(side.events, EPOLLIN); /* it was writable before */
    expect("hello");
    side.channel.writable = false; /* as a write would say */
    say("again", 0);
    turn_with(&side, POLLIN);
    assert_true(side.channel.writable);
    assert_int_equal(side.events, EPOLLIN | EPOLLOUT);
}

static void test_an_end_is_announced_with_what_comes_before_it(void **state)
{
    char byte;

    (void)state;
    say("last", 0);
    assert_return_code(shutdown(peer, SHUT_WR), 0);
    turn_with(&side, POLLRDHUP);
    assert_true(side.channel.readable);
    assert_true(side.channel.hung_up);
    assert_false(side.channel.ended);
    expect("last");
    assert_int_equal(channel_read(&side.channel, &byte, 1), 0);
}

static void test_a_reset_is_found_by_reading(void **state)
{
    static const struct linger reset = {.l_onoff = 1};
    char byte;

    (void)state;
    assert_return_code(setsockopt(peer, SOL_SOCKET, SO_LINGER, &reset, sizeof reset), 0);
    close(peer);
    peer = -1;
    turn_with(&side, POLLERR);
    assert_true(side.channel.readable);
    assert_true(side.events & EPOLLERR);
    assert_int_equal(channel_read(&side.channel, &byte, 1), -1);
    assert_int_equal(errno, ECONNRESET);
}

static void test_an_urgent_byte_is_told_where_it_stands(void **state)
{
    (void)state;
    say("before", 0);
    turn_with(&side, POLLIN);
    assert_true(side.channel.plain); /* epoll said so: nobody has to ask */
    assert_false(channel_is_at_mark(&side.channel));
    say("!", MSG_OOB);
    turn_with(&side, POLLPRI);
    say("after", 0);
    assert_true(side.channel.urgent);
    assert_false(side.channel.plain);
    assert_false(channel_is_at_mark(&side.channel));
    expect("before");
    assert_true(channel_is_at_mark(&side.channel));
    assert_int_equal(channel_read(&side.channel, &(char){0}, 1), 1);
    assert_false(channel_is_at_mark(&side.channel));
    await_events(side.channel.watch.fd, POLLIN);
    expect("after");
}

/* What was read meanwhile may be what the event was about: then the next byte may be urgent. */
static void test_an_event_from_before_a_read_says_nothing_of_the_next_byte(void **state)
{
    struct side other;
    int other_peer = open_side(&other);

    (void)state;
    loop_turn(&loop); /* both are writable */
    side.reads = &other;
    other.reads = &side;
    side.told = other.told = 0;
    say("x", 0);
    assert_int_equal(send(other_peer, "y", 1, 0), 1);
    await_events(side.channel.watch.fd, POLLIN);
    await_events(other.channel.watch.fd, POLLIN);
    loop_turn(&loop); /* the one that is told first reads what the other one is told then */
    assert_int_equal(side.told + other.told, 2);
    assert_false(side.channel.plain);
    assert_false(other.channel.plain);
    side.reads = other.reads = NULL;
    say("x", 0);
    assert_int_equal(send(other_peer, "y", 1, 0), 1);
    side.told = other.told = 0;
    while (!side.told || !other.told)
        loop_turn(&loop);
    assert_true(side.channel.plain && other.channel.plain); /* these are from after it */
    channel_close(&loop, &other.channel, true);
    close(other_peer);
}

static void test_a_close_with_a_reset_and_one_in_order(void **state)
{
    char byte;

    (void)state;
    for (int reset = 0; reset <= 1; reset++) {
        channel_close(&loop, &side.channel, reset);
        assert_false(channel_is_open(&side.channel));
        channel_close(&loop, &side.channel, reset); /* there is none */
        await_events(peer, POLLIN);
        assert_int_equal(recv(peer, &byte, 1, 0), reset ? -1 : 0);
        if (reset)
            assert_int_equal(errno, ECONNRESET);
        close(peer);
        peer = open_side(&side);
    }
}

static void test_nobody_needs_to_want_to_know(void **state)
{
    (void)state;
    side.channel.changed = NULL;
    say("x", 0);
    await_events(side.channel.watch.fd, POLLIN);
    loop_turn(&loop);
    assert_int_equal(side.told, 0);
    assert_true(side.channel.readable && side.channel.writable);
}

static void test_bytes_can_take_a_pipe(void **state)
{
    struct channel *channel = &side.channel;
    char bytes[64] = "";
    int ends[2];

    (void)state;
    assert_return_code(pipe2(ends, O_NONBLOCK | O_CLOEXEC), 0);
    say("through", 0);
    turn_with(&side, POLLIN);
    assert_int_equal(channel_to_pipe(channel, ends[1], 100), 7);
    assert_false(channel->plain);
    assert_int_equal(channel_to_pipe(channel, ends[1], 100), -1);
    assert_int_equal(errno, EAGAIN);
    assert_int_equal(channel->transport->from_pipe(channel, ends[0], 7), 7);
    await_events(peer, POLLIN);
    assert_int_equal(recv(peer, bytes, sizeof bytes, 0), 7);
    assert_string_equal(bytes, "through");
    assert_int_equal(channel->transport->shut(channel), 0);
    await_events(peer, POLLRDHUP);
    assert_int_equal(recv(peer, bytes, sizeof bytes, 0), 0);
    close(ends[0]);
    close(ends[1]);
}

static void test_a_write_to_one_that_is_gone_is_no_signal(void **state)
{
    struct channel *channel = &side.channel;

    (void)state;
    assert_int_equal(channel->transport->shut(channel), 0);
    assert_int_equal(channel->transport->write(channel, "x", 1, 0), -1);
    assert_int_equal(errno, EPIPE);
}

static void test_what_is_no_descriptor_cannot_be_watched(void **state)
{
    struct channel channel;

    (void)state;
    channel_init(&channel);
    assert_int_equal(channel_watch(&loop, &channel), -EBADF);
}

static int descriptor_at_close;

static void note_close(struct channel *channel)
{
    descriptor_at_close = channel->watch.fd;
}

static void test_a_transport_is_told_before_the_socket_is_closed(void **state)
{
    struct channel *channel = &side.channel;
    struct transport noting = transport_raw;
    int fd = channel->watch.fd;

    (void)state;
    noting.close = note_close;
    channel->transport = &noting;
    channel_close(&loop, channel, false);
    assert_int_equal(descriptor_at_close, fd);
    channel->transport = &transport_raw;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_what_came_is_noted_and_told_once),
        TEST(test_an_end_is_announced_with_what_comes_before_it),
        TEST(test_a_reset_is_found_by_reading),
        TEST(test_an_urgent_byte_is_told_where_it_stands),
        TEST(test_an_event_from_before_a_read_says_nothing_of_the_next_byte),
        TEST(test_a_close_with_a_reset_and_one_in_order),
        TEST(test_nobody_needs_to_want_to_know),
        TEST(test_bytes_can_take_a_pipe),
        TEST(test_a_write_to_one_that_is_gone_is_no_signal),
        TEST(test_what_is_no_descriptor_cannot_be_watched),
        TEST(test_a_transport_is_told_before_the_socket_is_closed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
