/* Connections that the application makes itself, to an endpoint that we choose: route action
 * `direct`. Nothing of ours is in the way of their bytes, not even a descriptor: a copy of the
 * application's socket would hold its close back from the peer. What becomes of a connection the
 * kernel reports when it frees the socket, which we know by its cookie.
 *
 * A worker has the direct connections that it was asked for. It listens to the kernel while it has
 * any, and a little longer. */
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "diag.h"
#include "internal.h"

enum {
    FIRST_SLOTS = 64,
    UNSUBSCRIBE_AFTER_MS = 1000, /* without a direct connection */
    CONNECT_SOON_MS = 2000,      /* after the answer the application connects at once */
    CLOCK_SLACK_MS = 1000,
};

/* ---- connections by cookie: open addressing, at most half full ---- */

static size_t slot_of(const struct cookies *cookies, uint64_t cookie)
{
    return (cookie * 0x9e3779b97f4a7c15u >> 32) & (cookies->capacity - 1);
}

static struct connection *cookies_find(const struct cookies *cookies, uint64_t cookie)
{
    if (cookies->count == 0)
        return NULL;
    for (size_t at = slot_of(cookies, cookie); cookies->slots[at];
         at = (at + 1) & (cookies->capacity - 1))
        if (cookies->slots[at]->cookie == cookie)
            return cookies->slots[at];
    return NULL;
}

static void place(struct cookies *cookies, struct connection *connection)
{
    size_t at = slot_of(cookies, connection->cookie);

    while (cookies->slots[at])
        at = (at + 1) & (cookies->capacity - 1);
    cookies->slots[at] = connection;
}

/* False when out of memory. */
static bool cookies_add(struct cookies *cookies, struct connection *connection)
{
    if (2 * (cookies->count + 1) > cookies->capacity) {
        struct cookies larger = {
            .capacity = cookies->capacity ? 2 * cookies->capacity : FIRST_SLOTS,
            .count = cookies->count,
        };

        larger.slots = calloc(larger.capacity, sizeof *larger.slots);
        if (!larger.slots)
            return false;
        for (size_t i = 0; i < cookies->capacity; i++)
            if (cookies->slots[i])
                place(&larger, cookies->slots[i]);
        free(cookies->slots);
        *cookies = larger;
    }
    place(cookies, connection);
    cookies->count++;
    return true;
}

static void cookies_remove(struct cookies *cookies, const struct connection *connection)
{
    size_t mask = cookies->capacity - 1, hole = slot_of(cookies, connection->cookie);

    while (cookies->slots[hole] != connection)
        hole = (hole + 1) & mask;
    cookies->count--;
    /* Those behind it that would no longer be found move up. */
    for (size_t at = (hole + 1) & mask; cookies->slots[at]; at = (at + 1) & mask) {
        size_t wanted = slot_of(cookies, cookies->slots[at]->cookie);

        if (((at - wanted) & mask) >= ((at - hole) & mask)) {
            cookies->slots[hole] = cookies->slots[at];
            hole = at;
        }
    }
    cookies->slots[hole] = NULL;
}

/* ---- what the kernel says of one ---- */

static void note_seen(struct connection *connection, const struct diag_socket *socket)
{
    atomic_store_explicit(&connection->seen_bytes[DOWNSTREAM], socket->bytes_sent,
                          memory_order_relaxed);
    atomic_store_explicit(&connection->seen_bytes[UPSTREAM], socket->bytes_received,
                          memory_order_relaxed);
    atomic_store_explicit(&connection->rtt_us, socket->rtt_us, memory_order_relaxed);
}

static uint64_t opened_ms(const struct connection *connection)
{
    return connection->opened_ns / 1000000u;
}

/* Negative in the turn of the loop that opened it. */
static int64_t age_ms(const struct connection *connection)
{
    return (int64_t)connection->worker->loop.now_ms - (int64_t)opened_ms(connection);
}

/* A socket that was disconnected (by SO_LINGER 0, or connect to AF_UNSPEC) has forgotten its bytes,
 * but not when the last acknowledgement came; one that never got one says a time before it was
 * made. */
static bool was_established(const struct connection *connection, const struct diag_socket *socket)
{
    return socket->bytes_acked > 0 || socket->last_ack_ms <= age_ms(connection) + CLOCK_SLACK_MS;
}

/* Of one that was never established:
 *
 *   no SYN was sent                       no route, no port, or never connected: not the endpoint
 *   the endpoint answered                 it refused
 *   the kernel has disconnected it        a connect() that waited, and failed
 *   the application closed it, unheard    the endpoint's doing if it had the time that we take
 *
 * An application that disconnects it itself is taken for the third. */
static bool is_endpoints_doing(const struct connection *connection,
                               const struct diag_socket *socket)
{
    const struct dp *dp = connection->worker->dp;

    if (socket->unacked == 0)
        return false;
    return socket->segments_received > 0 || socket->segments_sent == 0 ||
           age_ms(connection) >= atomic_load_explicit(&dp->connect_ms, memory_order_relaxed);
}

/* The kernel counts the peer's FIN as a byte received, if it came before the socket was freed.
 * Whether it did, of a socket whose own FIN was acknowledged:
 *
 *   the peer closed first (LAST_ACK)                     counted, nothing is left of the socket
 *   the FIN came, and the application did not read it    counted, and unread
 *   shut down by the application, then by the peer       counted, TIME_WAIT is left
 *   closed by the application, then by the peer          not counted, FIN_WAIT2 is left
 *
 * The last is taken for the one before if the peer's FIN comes between the event and our question.
 */
static bool counts_fin(const struct diag_socket *socket)
{
    return socket->unread > 0 || diag_state_left(socket) != DIAG_FIN_WAIT2;
}

static void count_bytes(struct connection *connection, uint64_t sent, uint64_t received)
{
    struct counters *counters = &connection->worker->counters;

    connection->counted = true;
    atomic_store_explicit(&connection->flow[DOWNSTREAM].bytes, sent, memory_order_relaxed);
    atomic_store_explicit(&connection->flow[UPSTREAM].bytes, received, memory_order_relaxed);
    counter_add(&counters->bytes[DOWNSTREAM], (int64_t)sent);
    counter_add(&counters->bytes[UPSTREAM], (int64_t)received);
}

static void end_unestablished(struct connection *connection, const struct diag_socket *socket)
{
    struct worker *worker = connection->worker;

    counter_add(&worker->counters.connect_failures, 1);
    if (is_endpoints_doing(connection, socket))
        endpoint_failed(connection->endpoint, worker->loop.now_ms);
    connection_close(connection, DP_END_UPSTREAM_CONNECT, 0);
}

static void end(struct connection *connection, const struct diag_socket *socket)
{
    bool fin_acked = socket->bytes_acked == socket->bytes_sent + 2; /* besides, the SYN */
    enum dp_end end = DP_END_UPSTREAM_RESET;

    connection->source = socket->source;
    if (!was_established(connection, socket)) {
        end_unestablished(connection, socket);
        return;
    }
    endpoint_succeeded(connection->endpoint, opened_ms(connection));
    if (fin_acked)
        end = DP_END_EOF;
    else if (socket->bytes_acked == 0 || socket->unread > 0)
        end = DP_END_DOWNSTREAM_RESET;
    if (socket->bytes_acked > 0) {
        uint64_t fin = fin_acked && socket->bytes_received > 0 && counts_fin(socket);

        note_seen(connection, socket);
        count_bytes(connection, socket->bytes_sent, socket->bytes_received - fin);
    }
    connection_close(connection, end, 0);
}

static void socket_freed(void *argument, const struct diag_socket *socket)
{
    struct worker *worker = argument;
    struct connection *connection = cookies_find(&worker->direct, socket->cookie);

    if (connection)
        end(connection, socket);
}

/* ---- listening ---- */

static void freed_ready(struct watch *watch, uint32_t events);
static void look_again(struct timer *timer);

static int subscribe(struct worker *worker)
{
    int result;

    if (worker->freed.fd >= 0)
        return 0;
    worker->freed.fd = diag_subscribe();
    if (worker->freed.fd < 0) {
        result = worker->freed.fd;
        worker->freed.fd = -1;
        return result;
    }
    worker->freed.ready = freed_ready;
    result = loop_watch(&worker->loop, &worker->freed, EPOLLIN);
    if (result < 0)
        direct_unsubscribe(worker);
    return result;
}

void direct_unsubscribe(struct worker *worker)
{
    loop_close_watch(&worker->loop, &worker->freed);
}

static void mark_present(void *argument, const struct diag_socket *socket)
{
    struct worker *worker = argument;
    struct connection *connection = cookies_find(&worker->direct, socket->cookie);

    if (connection) {
        connection->present = true;
        note_seen(connection, socket);
        if (was_established(connection, socket))
            endpoint_succeeded(connection->endpoint, opened_ms(connection));
    }
}

/* Events were lost: what is not there any more has ended unseen. */
static void look_for_all(struct worker *worker)
{
    struct cookies *direct = &worker->direct;

    for (size_t i = 0; i < direct->capacity; i++)
        if (direct->slots[i])
            direct->slots[i]->present = false;
    if (diag_visit_live(mark_present, worker) < 0)
        return;
    for (size_t i = 0; i < direct->capacity;) {
        struct connection *connection = direct->slots[i];
        uint64_t connected_by_ms = connection ? opened_ms(connection) + CONNECT_SOON_MS : 0;

        if (connection && !connection->present && connected_by_ms > worker->loop.now_ms)
            loop_set_timer(&worker->loop, &connection->timer, connected_by_ms - worker->loop.now_ms,
                           look_again);
        else if (connection && !connection->present) {
            connection_close(connection, DP_END_UNOBSERVED, 0);
            continue; /* another one may have moved up */
        }
        i++;
    }
}

/* One that was not there yet may be by now. */
static void look_again(struct timer *timer)
{
    look_for_all(OWNER(timer, struct connection, timer)->worker);
}

static void freed_ready(struct watch *watch, uint32_t events)
{
    struct worker *worker = OWNER(watch, struct worker, freed);
    bool all = diag_read_events(watch->fd, socket_freed, worker, &worker->events_lost);

    (void)events;
    if (all && worker->events_lost) {
        worker->events_lost = false;
        look_for_all(worker);
    }
    if (worker->direct.count == 0 &&
        worker->loop.now_ms - worker->direct_until_ms > UNSUBSCRIBE_AFTER_MS)
        direct_unsubscribe(worker);
}

/* ---- being asked ---- */

static int read_option(int fd, int level, int name)
{
    int value = 0;
    socklen_t length = sizeof value;

    return getsockopt(fd, level, name, &value, &length) < 0 ? -1 : value;
}

/* Whether the application's socket can be connected there, from what it may be bound to. */
static bool can_reach(const struct connection *connection, const struct mosnhook_address *endpoint)
{
    const struct mosnhook_address *source = &connection->source;
    bool ipv4 = address_is_ipv4(endpoint);

    if (read_option(connection->application, SOL_SOCKET, SO_DOMAIN) == AF_INET) {
        if (!ipv4)
            return false;
    } else if (ipv4 && read_option(connection->application, IPPROTO_IPV6, IPV6_V6ONLY) != 0) {
        return false;
    }
    if (address_is_unspecified(source))
        return true;
    return address_is_ipv4(source) == ipv4 &&
           (!address_is_loopback(source) || address_is_loopback(endpoint));
}

/* False where only a relay will do. */
static bool choose(struct connection *connection)
{
    uint64_t since_ms = ejected_since(connection->worker->dp, connection->worker->loop.now_ms);
    socklen_t length = sizeof connection->cookie;
    bool relayable = false; /* an endpoint that is not ejected, but not within reach */

    if (connection->worker->dp->namespace == 0 || /* see dp_direct_works */
        read_option(connection->application, SOL_SOCKET, SO_PROTOCOL) != IPPROTO_TCP ||
        getsockopt(connection->application, SOL_SOCKET, SO_COOKIE, &connection->cookie, &length) <
            0 ||
        address_of_local(connection->application, &connection->source) < 0 ||
        subscribe(connection->worker) < 0)
        return false;
    while (upstream_next_endpoint(connection)) {
        bool ejected = connection->endpoint && endpoint_is_ejected(connection->endpoint, since_ms);

        if (can_reach(connection, &connection->upstream))
            return !(ejected && relayable);
        relayable |= !ejected;
    }
    return false;
}

/* False: the asker waits for it no more. Never both, see mosnhook_request. */
static bool send_answer(struct connection *connection, enum mosnhook_action action)
{
    struct mosnhook_answer answer = {
        .magic = MOSNHOOK_MAGIC, .version = MOSNHOOK_VERSION, .action = (uint16_t)action};

    if (action == MOSNHOOK_REFUSE)
        answer.error = ECONNREFUSED;
    if (action == MOSNHOOK_DIRECT && connection->endpoint)
        answer.endpoint = connection->upstream;
    return send(connection->request.fd, &answer, sizeof answer, MSG_NOSIGNAL | MSG_DONTWAIT) ==
           sizeof answer;
}

/* The socket is asked for a second time: its first connect failed, or was undone. */
static void replace(struct worker *worker, const struct diag_socket *socket)
{
    struct connection *before = cookies_find(&worker->direct, socket->cookie);

    if (before && was_established(before, socket))
        connection_close(before, DP_END_UNOBSERVED, 0);
    else if (before)
        end_unestablished(before, socket);
}

/* A socket whose earlier connection may be another worker's. */
struct reused {
    struct reused *next;
    struct diag_socket socket;
};

static void replace_elsewhere(struct worker *worker, const struct diag_socket *socket)
{
    struct dp *dp = worker->dp;

    for (uint32_t i = 0; i < dp->worker_count; i++) {
        struct worker *other = &dp->workers[i];
        struct reused *reused = other == worker ? NULL : malloc(sizeof *reused), *was;

        if (!reused)
            continue;
        reused->socket = *socket;
        STACK_PUSH_CHAIN(&other->reused, reused, reused, next, &was);
        worker_wake(other);
    }
}

void direct_take_reused(struct worker *worker)
{
    struct reused *reused = STACK_TAKE(&worker->reused);

    while (reused) {
        struct reused *next = reused->next;

        replace(worker, &reused->socket);
        free(reused);
        reused = next;
    }
}

/* The ordinary request follows on the same connection of the control socket. */
static void await_request(struct connection *connection)
{
    struct worker *worker = connection->worker;
    uint32_t header_ms = atomic_load_explicit(&worker->dp->header_ms, memory_order_relaxed);

    /* Both requests are one connection, which takes one turn at the endpoints. */
    if (connection->cluster)
        cluster_give_back(connection->cluster);
    upstream_release(connection);
    connection->attempts = 0;
    connection->postponed = 0;
    memset(&connection->source, 0, sizeof connection->source);
    memset(&connection->upstream, 0, sizeof connection->upstream);
    foreign_close(connection, &connection->application);
    loop_set_timer(&worker->loop, &connection->timer, header_ms, arrival_expired);
}

static void refuse(struct connection *connection, enum dp_end end)
{
    if (!send_answer(connection, MOSNHOOK_REFUSE)) {
        await_request(connection);
        return;
    }
    connection_enter(connection, PHASE_CONNECTING);
    connection_close(connection, end, ECONNREFUSED);
}

/* False where it is to be handed over. */
static bool leave_to_application(struct connection *connection)
{
    struct worker *worker = connection->worker;
    struct diag_socket before;

    diag_of_fd(connection->application, &before);
    before.cookie = connection->cookie;
    replace(worker, &before);
    if (connection->source.port != 0) /* it was bound, or connected before */
        replace_elsewhere(worker, &before);
    if (!cookies_add(&worker->direct, connection))
        return false;
    if (worker->dp->page)
        __atomic_store_n(&worker->dp->page->elsewhere, 1, __ATOMIC_RELAXED);
    /* Before the answer: as long as we have a copy, a close by the application is no close. */
    foreign_close(connection, &connection->application);
    if (!send_answer(connection, MOSNHOOK_DIRECT)) {
        cookies_remove(&worker->direct, connection);
        return false;
    }
    connection->action = DP_DIRECT;
    atomic_store_explicit(&connection->path, DP_PATH_DIRECT, memory_order_relaxed);
    connection_enter(connection, PHASE_DIRECT);
    foreign_close_request(connection);
    connection_release_fds(connection, 0);
    return true;
}

void direct_ask(struct connection *connection)
{
    bool direct;
    enum dp_end refused = upstream_route(connection, &direct);

    if (refused != DP_END_NONE) {
        refuse(connection, refused);
        return;
    }
    if (direct && choose(connection) && leave_to_application(connection))
        return;
    await_request(connection);
    (void)send_answer(connection, MOSNHOOK_RELAY); /* the request comes in any case */
}

void direct_release(struct connection *connection)
{
    struct worker *worker = connection->worker;

    if (atomic_load_explicit(&connection->phase, memory_order_relaxed) != PHASE_DIRECT)
        return;
    cookies_remove(&worker->direct, connection);
    worker->direct_until_ms = worker->loop.now_ms;
    if (!connection->counted)
        count_bytes(connection,
                    atomic_load_explicit(&connection->seen_bytes[DOWNSTREAM], memory_order_relaxed),
                    atomic_load_explicit(&connection->seen_bytes[UPSTREAM], memory_order_relaxed));
}

bool direct_lists(const struct connection *connection)
{
    return cookies_find(&connection->worker->direct, connection->cookie) == connection;
}

void direct_close_table(struct worker *worker)
{
    direct_take_reused(worker);
    direct_unsubscribe(worker);
    free(worker->direct.slots);
}

/* ---- the control thread's look at the live ones ---- */

static void look_at(void *argument, const struct diag_socket *socket)
{
    struct connection *connection = cookies_find(argument, socket->cookie);

    if (!connection)
        return;
    note_seen(connection, socket);
    connection->seen_source = socket->source;
}

static bool is_direct(const struct connection *connection)
{
    return atomic_load_explicit(&connection->phase, memory_order_acquire) == PHASE_DIRECT;
}

void direct_look(struct dp *dp)
{
    struct cookies live = {.count = 0};
    bool complete = true;

    for (struct connection *connection = dp->live; connection; connection = connection->live_next)
        if (is_direct(connection))
            complete = cookies_add(&live, connection) && complete;
    if (complete && live.count > 0)
        (void)diag_visit_live(look_at, &live);
    free(live.slots);
}

size_t direct_count(const struct dp *dp)
{
    size_t count = 0;

    for (struct connection *connection = dp->live; connection; connection = connection->live_next)
        count += is_direct(connection);
    return count;
}

int dp_direct_works(void)
{
    uint64_t namespace;
    socklen_t length = sizeof namespace;
    int result = 0, fd = diag_subscribe();

    if (fd < 0)
        return fd;
    if (getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &namespace, &length) < 0)
        result = -errno;
    close(fd);
    return result;
}
