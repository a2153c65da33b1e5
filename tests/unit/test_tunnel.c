#include "unit.h"

#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/random.h"
#include "intercept/clients.h"
#include "intercept/listener.h"
#include "l4/tunnel.h"
#include "net/pipe.h"
#include "net/socket.h"
#include "routed.h"

enum { BULK = 8 * 1024 * 1024, FDS = 2, PATIENCE = 2000000 };

static struct routed_worker routed;
static struct worker *const worker = &routed.worker;
static struct pipes pipes;
static struct clients clients;
static struct listener listener;
static int accepting;  /* the upstream's listener */
static int peers[2];   /* what we talk to: the application's socket, the upstream's; -1: none */
static unsigned ended; /* reports */
static struct session *session;

/* ---- what api/ does otherwise ---- */

static void opened(struct session *of)
{
    (void)of;
}

static void closed(struct session *of)
{
    (void)of;
    ended++;
}

static void arrived(struct session *of)
{
    struct choice choice;

    assert_int_equal(choice_begin(&choice, worker, &of->origin), DP_END_NONE);
    tunnel_start(of, &choice);
}

static const struct flow_ops *ops;

static const struct flow_ops *flow_ops(struct tunnel *tunnel)
{
    (void)tunnel;
    return ops;
}

static const struct session_handler handler = {
    .opened = opened,
    .closed = closed,
    .arrived = arrived,
    .flow_ops = flow_ops,
};

/* ---- a tunnel between two sockets ---- */

/* So that what the kernel keeps for a peer is less than BULK. */
static void keep_little(int fd, int option)
{
    static const int size = 64 * 1024;

    assert_return_code(setsockopt(fd, SOL_SOCKET, option, &size, sizeof size), 0);
}

static int set_up(void **state)
{
    struct dp_route route = {.endpoint_count = 1};
    struct mosnhook_address endpoint;

    (void)state;
    routed_open(&routed);
    accepting = listen_on_loopback(&endpoint);
    keep_little(accepting, SO_RCVBUF);
    set_route(&routed, DP_OUTBOUND, &route, &endpoint);
    worker->pipes = &pipes;
    worker->clients = &clients;
    worker->handler = &handler;
    listener = (struct listener){.settings.transport = DP_TRANSPORT_HEADER};
    peers[DOWNSTREAM] = peers[UPSTREAM] = -1;
    ended = 0;
    ops = NULL;
    session = NULL;
    return 0;
}

/* As api/ does at the end of a turn. */
static void free_closed(void)
{
    while (worker->closed) {
        struct session *next = worker->closed->next_closed;

        session_free(worker->closed);
        worker->closed = next;
    }
    session = NULL;
}

static void close_peer(int side)
{
    if (peers[side] >= 0)
        close(peers[side]);
    peers[side] = -1;
}

static int tear_down(void **state)
{
    (void)state;
    if (session && session_state(session) != SESSION_CLOSED)
        session_close(session, DP_END_EOF, 0);
    free_closed();
    close_peer(DOWNSTREAM);
    close_peer(UPSTREAM);
    close(accepting);
    pipes_close(worker);
    routed_close(&routed);
    return 0;
}

/* NULL where there was no memory. */
static struct session *arrive(void)
{
    int fds[2];

    tcp_pair(fds);
    peers[DOWNSTREAM] = fds[0];
    keep_little(fds[0], SO_SNDBUF);
    assert_true(budget_reserve(&routed.budget, FDS));
    loop_update_clock(&worker->loop);
    session = session_open(worker, &listener, &intercept_connected, FDS);
    if (!session) {
        close(fds[1]);
        return NULL;
    }
    assert_int_equal(socket_tune(fds[1]), 0);
    session->downstream.watch.fd = fds[1];
    session->origin.original_destination = on_loopback(80);
    session_downstream_waits(session);
    assert_int_equal(channel_watch(&worker->loop, &session->downstream), 0);
    session_arrived(session);
    return session;
}

static void accept_upstream(void)
{
    await_events(accepting, POLLIN);
    peers[UPSTREAM] = accept4(accepting, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    assert_int_not_equal(peers[UPSTREAM], -1);
}

static struct tunnel *open_tunnel(void)
{
    assert_non_null(arrive());
    accept_upstream();
    while (session_state(session) != SESSION_SERVED)
        loop_turn(&worker->loop);
    return session->served;
}

/* So that no turn waits. */
static void do_nothing(struct task *task)
{
    (void)task;
}

static struct task nothing = {.run = do_nothing};

static void poll_once(void)
{
    task_schedule(&worker->loop.tasks, &nothing);
    loop_turn(&worker->loop);
}

static void say(int side, const char *text, int flags)
{
    assert_int_equal(send(peers[side], text, strlen(text), MSG_NOSIGNAL | flags), strlen(text));
}

/* Turns until there is something to read at a peer, and reads it: bytes, 0, or -errno. */
static int hear(int side, char *to, size_t size)
{
    for (int i = 0; i < PATIENCE; i++) {
        ssize_t count = recv(peers[side], to, size, 0);

        if (count >= 0)
            return (int)count;
        if (errno != EAGAIN)
            return -errno;
        poll_once();
    }
    fail_msg("nothing came");
    return 0;
}

static void expect(int side, const char *text)
{
    char bytes[64] = "";
    size_t got = 0;

    while (got < strlen(text)) {
        int count = hear(side, bytes + got, strlen(text) - got);

        assert_true(count > 0);
        got += (size_t)count;
    }
    assert_string_equal(bytes, text);
}

static void expect_end(int side, int result)
{
    assert_int_equal(hear(side, &(char){0}, 1), result);
}

static void await_closed(enum dp_end end)
{
    for (int i = 0; !ended && i < PATIENCE; i++)
        poll_once();
    assert_int_equal(ended, 1);
    assert_int_equal(session_state(session), SESSION_CLOSED);
    assert_int_equal(session->end, end);
}

/* ---- bytes ---- */

static void test_what_one_side_says_the_other_one_hears(void **state)
{
    (void)state;
    open_tunnel();
    for (int i = 0; i < 10; i++) {
        say(DOWNSTREAM, "question", 0);
        expect(UPSTREAM, "question");
        say(UPSTREAM, "an answer", 0);
        expect(DOWNSTREAM, "an answer");
    }
    assert_int_equal(counter_read(&session->bytes[DOWNSTREAM]), 80);
    assert_int_equal(counter_read(&session->bytes[UPSTREAM]), 90);
    assert_int_equal(counter_read(&worker->counters.buffers), 0);
}

static uint8_t byte_at(size_t offset)
{
    return (uint8_t)(random_mix(offset / 8) >> offset % 8 * 8);
}

/* Sends what fits of BULK bytes; where it is. */
static size_t pump(int side, size_t at)
{
    static uint8_t bytes[64 * 1024];
    ssize_t sent;

    do {
        size_t count = BULK - at < sizeof bytes ? BULK - at : sizeof bytes;

        for (size_t i = 0; i < count; i++)
            bytes[i] = byte_at(at + i);
        sent = count ? send(peers[side], bytes, count, MSG_NOSIGNAL) : 0;
        at += sent > 0 ? (size_t)sent : 0;
    } while (sent > 0);
    return at;
}

static size_t drain(int side, size_t at, size_t most)
{
    static uint8_t bytes[64 * 1024];
    ssize_t count = recv(peers[side], bytes, most < sizeof bytes ? most : sizeof bytes, 0);

    for (ssize_t i = 0; i < count; i++)
        if (bytes[i] != byte_at(at + (size_t)i))
            fail_msg("byte %zu is another one", at + (size_t)i);
    return at + (count > 0 ? (size_t)count : 0);
}

static void test_bulk_is_spliced_and_small_traffic_copied_again(void **state)
{
    struct tunnel *tunnel = open_tunnel();
    bool spliced = false;

    (void)state;
    for (int from = DOWNSTREAM; from <= UPSTREAM; from++) {
        for (size_t sent = 0, got = 0; got < BULK;) {
            sent = pump(from, sent);
            poll_once();
            got = drain(!from, got, SIZE_MAX);
            spliced |= tunnel->flow[from].splicing;
        }
        assert_true(spliced);
        assert_int_equal(counter_read(&session->bytes[from]), BULK);
        assert_true(counter_read(&worker->counters.bytes_spliced) > 0);
        for (int i = 0; i < 20; i++) {
            say(from, "small", 0);
            expect(!from, "small");
        }
        assert_false(tunnel->flow[from].splicing);
        assert_null(tunnel->flow[from].pipe); /* a flow that waits for nothing holds no memory */
    }
    assert_int_equal(counter_read(&worker->counters.buffers), 0);
}

static void test_a_flow_without_a_pipe_copies(void **state)
{
    struct tunnel *tunnel = open_tunnel();
    int others = BUDGET / 8 * 7;

    (void)state;
    assert_true(budget_reserve(&routed.budget, others)); /* none are left for pipes */
    for (size_t sent = 0, got = 0; got < BULK;) {
        sent = pump(DOWNSTREAM, sent);
        poll_once();
        got = drain(UPSTREAM, got, SIZE_MAX);
        assert_null(tunnel->flow[DOWNSTREAM].pipe);
    }
    budget_release(&routed.budget, others);
    assert_int_equal(counter_read(&worker->counters.bytes_spliced), 0);
}

/* A peer that reads nothing, then little at a time. */
static void test_a_flow_keeps_what_one_read_brought_and_reads_no_more(void **state)
{
    struct tunnel *tunnel = open_tunnel();
    struct flow *flow = &tunnel->flow[DOWNSTREAM];
    size_t sent = 0, got = 0, before;
    int quiet = 0;

    (void)state;
    while (quiet < 50) { /* until nobody takes anything any more */
        before = sent;
        sent = pump(DOWNSTREAM, sent);
        poll_once();
        quiet = sent == before ? quiet + 1 : 0;
        assert_true(counter_read(&worker->counters.buffers) <= 1);
    }
    assert_in_range(sent, 1, BULK - 1);
    assert_int_equal(counter_read(&worker->counters.buffers), 1);
    assert_true((flow->chunk != NULL) != (flow->pipe != NULL));
    assert_false(tunnel->upstream.writable);
    say(UPSTREAM, "the other way is free", 0);
    expect(DOWNSTREAM, "the other way is free");
    while (got < BULK) {
        got = drain(UPSTREAM, got, 30011);
        sent = pump(DOWNSTREAM, sent);
        poll_once();
        assert_true(counter_read(&worker->counters.buffers) <= 1);
    }
    assert_int_equal(counter_read(&worker->counters.buffers), 0);
}

/* ---- ends ---- */

static void open_anew(void)
{
    if (session)
        free_closed();
    close_peer(DOWNSTREAM);
    close_peer(UPSTREAM);
    ended = 0;
    open_tunnel();
}

static void test_an_end_is_passed_on_and_the_other_way_goes_on(void **state)
{
    (void)state;
    for (int first = DOWNSTREAM; first <= UPSTREAM; first++) {
        open_anew();
        say(first, "last words", 0);
        assert_return_code(shutdown(peers[first], SHUT_WR), 0);
        expect(!first, "last words");
        expect_end(!first, 0);
        assert_int_equal(ended, 0);
        say(!first, "still here", 0);
        expect(first, "still here");
        assert_return_code(shutdown(peers[!first], SHUT_WR), 0);
        expect_end(first, 0);
        await_closed(DP_END_EOF);
    }
}

static void reset_peer(int side)
{
    static const struct linger linger = {.l_onoff = 1};

    assert_return_code(setsockopt(peers[side], SOL_SOCKET, SO_LINGER, &linger, sizeof linger), 0);
    close_peer(side);
}

static void test_a_reset_is_a_reset_on_the_other_side(void **state)
{
    (void)state;
    for (int first = DOWNSTREAM; first <= UPSTREAM; first++) {
        open_anew();
        say(first, "some", 0);
        expect(!first, "some");
        reset_peer(first);
        await_closed(first == DOWNSTREAM ? DP_END_DOWNSTREAM_RESET : DP_END_UPSTREAM_RESET);
        assert_int_equal(session->error, ECONNRESET);
        expect_end(!first, -ECONNRESET); /* and no end before */
    }
}

static void test_a_reset_does_not_wait_for_backpressure(void **state)
{
    size_t sent = 0, before;
    int quiet = 0;

    (void)state;
    open_tunnel();
    while (quiet < 50) {
        before = sent;
        sent = pump(DOWNSTREAM, sent);
        poll_once();
        quiet = sent == before ? quiet + 1 : 0;
    }
    reset_peer(DOWNSTREAM);
    await_closed(DP_END_DOWNSTREAM_RESET);
}

static void test_an_urgent_byte_keeps_its_place(void **state)
{
    int one = 1, at_mark;

    (void)state;
    open_tunnel();
    for (int from = DOWNSTREAM; from <= UPSTREAM; from++) {
        assert_return_code(setsockopt(peers[!from], SOL_SOCKET, SO_OOBINLINE, &one, sizeof one), 0);
        say(from, "before", 0);
        say(from, "!", MSG_OOB);
        say(from, "after", 0);
        expect(!from, "before");
        do
            poll_once();
        while (ioctl(peers[!from], SIOCATMARK, &at_mark) == 0 && !at_mark);
        expect(!from, "!");
        assert_return_code(ioctl(peers[!from], SIOCATMARK, &at_mark), 0);
        assert_false(at_mark);
        expect(!from, "after");
    }
}

static void test_one_that_idles_is_closed(void **state)
{
    (void)state;
    atomic_store(&routed.timeouts.idle_ms, 30);
    open_tunnel();
    say(DOWNSTREAM, "x", 0);
    expect(UPSTREAM, "x");
    while (!ended)
        loop_turn(&worker->loop);
    assert_int_equal(session->end, DP_END_IDLE_TIMEOUT);
    assert_true(session->closed_ns - session->opened_ns >= 29000000);
    expect_end(DOWNSTREAM, -ECONNRESET);
    expect_end(UPSTREAM, -ECONNRESET);
}

static void test_an_upstream_that_refuses_ends_it(void **state)
{
    (void)state;
    close(accepting);
    accepting = -1;
    assert_non_null(arrive());
    await_closed(DP_END_UPSTREAM_CONNECT);
    assert_int_equal(session->error, ECONNREFUSED);
    expect_end(DOWNSTREAM, -ECONNRESET);
}

/* ---- other transports ---- */

static unsigned reads, writes;

/* Takes a few bytes at every second call. */
static ssize_t write_little(struct channel *channel, const void *from, size_t size, int flags)
{
    if (writes++ % 2) {
        errno = EAGAIN;
        return -1;
    }
    return transport_raw.write(channel, from, size < 7 ? size : 7, flags);
}

static ssize_t write_nowhere(struct channel *channel, const void *from, size_t size, int flags)
{
    (void)channel;
    (void)from;
    (void)flags;
    return (ssize_t)size;
}

static ssize_t read_endlessly(struct channel *channel, void *to, size_t size)
{
    (void)channel;
    memset(to, 0, size);
    reads++;
    return (ssize_t)size;
}

static struct transport looked_at; /* without splice() */

static struct tunnel *open_with_transport(void)
{
    struct tunnel *tunnel = open_tunnel();

    poll_once();
    looked_at = transport_raw;
    looked_at.to_pipe = NULL;
    looked_at.from_pipe = NULL;
    tunnel->upstream.transport = session->downstream.transport = &looked_at;
    return tunnel;
}

static void test_short_writes_lose_and_repeat_nothing(void **state)
{
    static const char text[] = "a few bytes at a time, and each of them once, in this order";
    struct tunnel *tunnel = open_with_transport();
    char heard[sizeof text] = "";
    size_t got = 0;

    (void)state;
    looked_at.write = write_little;
    say(DOWNSTREAM, text, 0);
    await_events(session->downstream.watch.fd, POLLIN);
    while (got < sizeof text - 1) {
        ssize_t count = recv(peers[UPSTREAM], heard + got, sizeof text - 1 - got, 0);

        assert_true(count <= 7);
        got += count > 0 ? (size_t)count : 0;
        tunnel->upstream.writable = true;
        tunnel_go_on(tunnel);
        poll_once();
    }
    assert_string_equal(heard, text);
    assert_null(tunnel->flow[DOWNSTREAM].chunk);
    assert_int_equal(counter_read(&session->bytes[DOWNSTREAM]), sizeof text - 1);
}

static ssize_t write_nothing(struct channel *channel, const void *from, size_t size, int flags)
{
    (void)channel;
    (void)from;
    (void)size;
    (void)flags;
    errno = EAGAIN;
    return -1;
}

static void test_without_memory_for_what_was_read_it_ends(void **state)
{
    (void)state;
    open_with_transport();
    looked_at.write = write_nothing;
    say(DOWNSTREAM, "lost", 0);
    failing_set(1);
    await_closed(DP_END_NO_RESOURCES);
    assert_true(failing_take());
    assert_int_equal(session->error, ENOMEM);
    expect_end(UPSTREAM, -ECONNRESET); /* nothing follows the gap, and no end */
}

static void test_a_flow_that_never_ends_leaves_others_their_turns(void **state)
{
    struct tunnel *tunnel = open_with_transport();

    (void)state;
    looked_at.read = read_endlessly;
    looked_at.write = write_nowhere;
    session->downstream.readable = true;
    for (unsigned turns = 1; turns < 10; turns++) {
        tunnel_go_on(tunnel);
        reads = 0;
        poll_once();
        assert_in_range(reads, 1, 100);
        assert_int_equal(worker->loop.tasks.count, 1);   /* it goes on by itself */
        assert_false(tunnel->flow[DOWNSTREAM].splicing); /* bytes have to be looked at */
    }
}

/* ---- what stands beside the flows ---- */

static char calls[256]; /* a letter each */
static bool waiting;

static void called(char letter)
{
    size_t length = strlen(calls);

    if (length + 1 < sizeof calls && (length == 0 || calls[length - 1] != letter))
        calls[length] = letter;
}

static void op_ran(struct tunnel *tunnel)
{
    (void)tunnel;
    called('r');
}

static bool op_waits(struct tunnel *tunnel, int to)
{
    (void)tunnel;
    (void)to;
    return waiting;
}

static void op_copying(struct tunnel *tunnel, int from)
{
    (void)tunnel;
    (void)from;
    called('c');
}

static void op_copied(struct tunnel *tunnel, int from, bool bulk)
{
    (void)tunnel;
    (void)from;
    assert_false(bulk);
    called('C');
}

static void op_forwarded(struct tunnel *tunnel, int from, size_t bytes)
{
    assert_int_equal(bytes, 5);
    assert_int_equal(counter_read(&tunnel->session->bytes[from]), 5);
    called('f');
}

static void op_urgent(struct tunnel *tunnel, int from)
{
    (void)tunnel;
    (void)from;
    called('u');
}

static void op_stop(struct tunnel *tunnel)
{
    assert_true(channel_is_open(&tunnel->upstream));
    assert_true(channel_is_open(&tunnel->session->downstream));
    called('s');
}

static void op_release(struct tunnel *tunnel)
{
    assert_false(channel_is_open(&tunnel->upstream));
    called('R');
}

static const struct flow_ops noting = {
    .ran = op_ran,
    .waits = op_waits,
    .copying = op_copying,
    .copied = op_copied,
    .forwarded = op_forwarded,
    .urgent = op_urgent,
    .stop = op_stop,
    .release = op_release,
};

static void test_ops_are_called_in_order(void **state)
{
    (void)state;
    waiting = false;
    ops = &noting;
    open_tunnel();
    poll_once();
    memset(calls, 0, sizeof calls);
    say(DOWNSTREAM, "hello", 0);
    expect(UPSTREAM, "hello");
    assert_string_equal(calls, "cfCr");
    memset(calls, 0, sizeof calls);
    session_close(session, DP_END_DRAIN_LIMIT, 0);
    assert_string_equal(calls, "sR");
}

static void test_who_waits_is_sent_nothing_until_a_task_goes_on(void **state)
{
    struct tunnel *tunnel;

    (void)state;
    waiting = true;
    ops = &noting;
    tunnel = open_tunnel();
    memset(calls, 0, sizeof calls);
    say(DOWNSTREAM, "hello", 0);
    await_events(session->downstream.watch.fd, POLLIN);
    for (int i = 0; i < 20; i++)
        poll_once();
    assert_string_equal(calls, "r"); /* and the worker does not spin: nothing is scheduled */
    assert_int_equal(worker->loop.tasks.count, 0);
    assert_int_equal(counter_read(&session->bytes[DOWNSTREAM]), 0);
    waiting = false;
    tunnel_go_on(tunnel);
    expect(UPSTREAM, "hello");
}

static void test_one_that_waits_for_ever_still_ends(void **state)
{
    (void)state;
    waiting = true;
    ops = &noting;
    open_tunnel();
    say(DOWNSTREAM, "hello", 0);
    poll_once();
    reset_peer(UPSTREAM);
    await_closed(DP_END_UPSTREAM_RESET);
}

/* ---- at any point ---- */

static void test_closed_while_it_connects_it_leaves_nothing(void **state)
{
    int waits = fill_queue(accepting);

    (void)state;
    assert_non_null(arrive());
    assert_int_equal(session_state(session), SESSION_CONNECTING);
    assert_int_equal(worker->loop.timers.count, 1);
    session_close(session, DP_END_DRAIN_LIMIT, 0);
    assert_int_equal(worker->loop.timers.reserved, 0);
    close(waits);
}

static void test_closed_with_a_pipe_that_holds_bytes_it_leaves_nothing(void **state)
{
    struct flow *flow = &open_tunnel()->flow[DOWNSTREAM];

    (void)state;
    for (size_t sent = 0, got = 0; !(flow->pipe && flow->pipe->held); poll_once()) {
        assert_true(sent < BULK);
        sent = pump(DOWNSTREAM, sent);
        if (!flow->splicing)
            got = drain(UPSTREAM, got, SIZE_MAX);
    }
    session_close(session, DP_END_DRAIN_LIMIT, 0);
    assert_int_equal(budget_used(&routed.budget), 0); /* no pipe with old bytes is kept */
}

/* A step of a connection's life; false: that was all. */
static bool step(int number)
{
    switch (number) {
    case 0:
        return arrive() != NULL;
    case 1:
        accept_upstream();
        return true;
    case 2:
    case 4:
    case 7:
        poll_once();
        return true;
    case 3:
        pump(DOWNSTREAM, 0);
        say(UPSTREAM, "x", 0);
        return true;
    case 5:
        pump(DOWNSTREAM, 0);
        return true;
    case 6:
        return shutdown(peers[DOWNSTREAM], SHUT_WR) == 0;
    case 8:
        reset_peer(UPSTREAM);
        return true;
    default:
        return false;
    }
}

static void test_closed_at_any_point_it_leaves_nothing(void **state)
{
    int last = 0;

    for (int stop = 1; last == stop - 1; stop++) {
        for (last = 0; last < stop && step(last); last++)
            ;
        if (!ended)
            session_close(session, DP_END_DRAIN_LIMIT, 0);
        assert_int_equal(ended, 1);
        assert_int_equal(worker->loop.timers.reserved, 0);
        tear_down(state); /* where everything else is looked at */
        set_up(state);
    }
    assert_in_range(last, 9, 9);
}

static void test_whichever_allocation_fails_it_leaves_nothing(void **state)
{
    bool failed = true;
    unsigned number;

    for (number = 1; failed; number++) {
        bool alive;

        failing_set(number);
        alive = arrive() && session_state(session) != SESSION_CLOSED;
        if (alive) {
            accept_upstream();
            for (int i = 0; !ended && i < 200; i++) { /* the upstream reads nothing */
                pump(DOWNSTREAM, 0);
                poll_once();
            }
        }
        failed = failing_take();
        if (session && session_state(session) == SESSION_CLOSED)
            assert_int_equal(session->end, DP_END_NO_RESOURCES);
        tear_down(state);
        set_up(state);
    }
    assert_in_range(number, 6, 100);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_what_one_side_says_the_other_one_hears),
        TEST(test_bulk_is_spliced_and_small_traffic_copied_again),
        TEST(test_a_flow_without_a_pipe_copies),
        TEST(test_a_flow_keeps_what_one_read_brought_and_reads_no_more),
        TEST(test_an_end_is_passed_on_and_the_other_way_goes_on),
        TEST(test_a_reset_is_a_reset_on_the_other_side),
        TEST(test_a_reset_does_not_wait_for_backpressure),
        TEST(test_an_urgent_byte_keeps_its_place),
        TEST(test_one_that_idles_is_closed),
        TEST(test_an_upstream_that_refuses_ends_it),
        TEST(test_short_writes_lose_and_repeat_nothing),
        TEST(test_without_memory_for_what_was_read_it_ends),
        TEST(test_a_flow_that_never_ends_leaves_others_their_turns),
        TEST(test_ops_are_called_in_order),
        TEST(test_who_waits_is_sent_nothing_until_a_task_goes_on),
        TEST(test_one_that_waits_for_ever_still_ends),
        TEST(test_closed_while_it_connects_it_leaves_nothing),
        TEST(test_closed_with_a_pipe_that_holds_bytes_it_leaves_nothing),
        TEST(test_closed_at_any_point_it_leaves_nothing),
        TEST(test_whichever_allocation_fails_it_leaves_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
