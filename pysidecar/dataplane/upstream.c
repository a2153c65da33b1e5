/* From the original destination to a connected upstream: route, endpoint, connect, and the next
 * endpoint when one does not answer. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "internal.h"
#include "rules.h"

enum {
    KEEPALIVE_IDLE_S = 60,
    KEEPALIVE_INTERVAL_S = 15,
    KEEPALIVE_PROBES = 4,
    MAX_POSTPONED = 64, /* attempts: the bits of connection->postponed */

    /* Bytes that a socket of ours holds unsent, towards this host. With 512 KiB a receiver that
     * never reads was felt up to seven times as late as natively; bulk is no faster with it. */
    UNSENT_ROOM = 128 * 1024,
};

static void try_endpoints(struct connection *connection, int error);
static void connecting_ready(struct watch *watch, uint32_t events);
static void connecting_expired(struct timer *timer);

uint64_t ejected_since(const struct dp *dp, uint64_t now_ms)
{
    uint32_t ejection_ms = atomic_load_explicit(&dp->ejection_ms, memory_order_relaxed);

    if (ejection_ms == 0)
        return UINT64_MAX;
    return now_ms > ejection_ms ? now_ms - ejection_ms : 0;
}

int connect_socket(int fd, const struct mosnhook_address *to)
{
    struct sockaddr_storage name;
    socklen_t length = address_to_socket(to, &name);

    if (connect(fd, (struct sockaddr *)&name, length) == 0)
        return 0;
    if (errno != EINPROGRESS)
        return -errno;
    /* The kernel answers EINPROGRESS also when it has just connected the socket; the second call
     * says what has become of it. */
    if (connect(fd, (struct sockaddr *)&name, length) == 0)
        return 0;
    return errno == EALREADY ? -EINPROGRESS : -errno;
}

int tune_socket(int fd)
{
    static const struct {
        int level, name, value;
    } options[] = {
        {IPPROTO_TCP, TCP_NODELAY, 1},
        {SOL_SOCKET, SO_OOBINLINE, 1}, /* urgent data keeps its place, see relay.c */
        {SOL_SOCKET, SO_KEEPALIVE, 1},
        {IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S},
        {IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S},
        {IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES},
    };

    /* A process that is killed closes its sockets as if all had been said; these are reset then. */
    static const struct linger reset = {.l_onoff = 1};

    if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset) < 0)
        return -errno;
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        if (setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof(int)) < 0)
            return -errno;
    return 0;
}

void tune_for_this_host(int fd)
{
    static const char reno[] = "reno";

    (void)setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, reno, sizeof reno - 1);
}

void tune_towards_this_host(int fd)
{
    static const int unsent = UNSENT_ROOM;

    tune_for_this_host(fd);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent);
}

static bool is_own(const struct dp *dp, const struct mosnhook_address *address)
{
    for (size_t i = 0; i < dp->own_count; i++) {
        const struct mosnhook_address *own = &dp->own[i];

        if (address_equal(own, address) ||
            (own->port == address->port && address_is_unspecified(own) &&
             address_is_loopback(address)))
            return true;
    }
    return false;
}

/* Where a connection goes without an endpoint of its route. */
static struct mosnhook_address default_upstream(const struct connection *connection)
{
    struct mosnhook_address upstream = connection->listener->settings.application;

    if (address_is_zero(&upstream))
        return connection->original_destination;
    upstream.port = connection->original_destination.port;
    return upstream;
}

/* The hook does not ask for these: it is somebody who wants to reach what is on our loopback as us.
 */
static bool is_excluded(const struct connection *connection)
{
    return connection->listener->settings.direction == DP_OUTBOUND &&
           address_is_loopback(&connection->original_destination) &&
           table_match(worker_table(connection->worker, DP_EXCLUDED),
                       &connection->original_destination) != MOSNHOOK_NO_RULE;
}

enum dp_end upstream_route(struct connection *connection, bool *direct)
{
    const struct dp_listener *listener = &connection->listener->settings;
    struct worker *worker = connection->worker;
    struct table *table = worker_table(worker, listener->direction);
    struct mosnhook_address upstream = default_upstream(connection);
    const struct route *route = NULL;

    connection->route = table_match(table, &connection->original_destination);
    if (connection->route != MOSNHOOK_NO_RULE)
        route = &table->routes[connection->route];
    *direct = route && route->action == DP_DIRECT;
    if (is_excluded(connection))
        return DP_END_EXCLUDED;
    if (route && route->action == DP_REFUSE) {
        connection->action = DP_REFUSE;
        return DP_END_REFUSED_BY_ROUTE;
    }
    if (route && route->cluster) {
        shared_reference(&route->cluster->shared);
        connection->cluster = route->cluster;
        connection->first_endpoint = cluster_pick(
            route->cluster, ejected_since(worker->dp, worker->loop.now_ms), &worker->random);
    } else if (is_own(worker->dp, &upstream)) {
        return DP_END_LOOP;
    }
    return DP_END_NONE;
}

/* Where the application cannot connect itself, `direct` is a relay. */
void upstream_start(struct connection *connection)
{
    bool direct;
    enum dp_end end = upstream_route(connection, &direct);

    connection_enter(connection, PHASE_CONNECTING);
    if (end != DP_END_NONE)
        connection_refuse(connection, end, ECONNREFUSED);
    else
        try_endpoints(connection, 0);
}

void upstream_release(struct connection *connection)
{
    if (connection->endpoint)
        atomic_fetch_sub_explicit(&connection->endpoint->active, 1, memory_order_relaxed);
    connection->endpoint = NULL;
    if (connection->cluster)
        shared_release(&connection->cluster->shared);
    connection->cluster = NULL;
}

/* The address that the application on this host shall see, or NULL if the upstream is another one
 * or it does not matter. Never one that the application could not answer to. */
static const struct mosnhook_address *source_for_application(const struct connection *connection)
{
    const struct dp_listener *listener = &connection->listener->settings;
    const struct mosnhook_address *upstream = &connection->upstream;
    const struct mosnhook_address *source;

    if (!address_is_loopback(upstream) &&
        memcmp(upstream->ip, connection->original_destination.ip, sizeof upstream->ip) != 0)
        return NULL;
    if (!listener->preserve_source)
        source = &listener->application_source[address_is_ipv4(upstream) ? 0 : 1];
    else if (address_is_loopback(upstream) && !address_is_loopback(&connection->source))
        source = &connection->source;
    else
        return NULL;
    if (address_is_zero(source) || address_is_ipv4(source) != address_is_ipv4(upstream))
        return NULL;
    return source;
}

static int bind_source(int fd, const struct mosnhook_address *chosen)
{
    struct mosnhook_address source = *chosen;
    struct sockaddr_storage name;
    socklen_t length;
    int one = 1;

    source.port = 0;
    length = address_to_socket(&source, &name);
    /* The port at connect, when the destination is known: else all share 28,000 ports. */
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    return bind(fd, (struct sockaddr *)&name, length) < 0 ? -errno : 0;
}

static int set_mark(int fd, uint32_t mark)
{
    return mark == 0 || setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof mark) == 0 ? 0 : -errno;
}

/* An application that chose a source (to pick an interface) keeps it. */
static int keep_source(const struct connection *connection, int fd)
{
    const struct mosnhook_address *source = &connection->source;
    const struct mosnhook_address *upstream = &connection->upstream;

    if (connection->listener->settings.transport != DP_TRANSPORT_UNIX ||
        address_is_loopback(upstream) || address_is_loopback(source) ||
        address_is_ipv4(source) != address_is_ipv4(upstream))
        return 0;
    return bind_source(fd, source);
}

/* An inbound connection came to an address of this host, and so does one that goes on to it. */
static bool is_on_this_host(const struct connection *connection)
{
    const struct mosnhook_address *upstream = &connection->upstream;

    return address_is_loopback(upstream) ||
           (connection->listener->settings.direction == DP_INBOUND &&
            memcmp(upstream->ip, connection->original_destination.ip, sizeof upstream->ip) == 0);
}

/* Marks the socket and gives it the address that the upstream shall see. 0 or -errno. */
static int prepare_socket(const struct connection *connection, int fd)
{
    const struct dp_listener *listener = &connection->listener->settings;
    const struct mosnhook_address *source = source_for_application(connection);
    bool ipv4 = address_is_ipv4(&connection->upstream);
    int result = tune_socket(fd);
    int one = 1;

    if (result < 0)
        return result;
    if (is_on_this_host(connection))
        tune_towards_this_host(fd);
    if (!source) {
        result = set_mark(fd, listener->mark);
        return result < 0 ? result : keep_source(connection, fd);
    }
    result = set_mark(fd, listener->application_mark);
    if (result < 0)
        return result;
    if (setsockopt(fd, ipv4 ? IPPROTO_IP : IPPROTO_IPV6, ipv4 ? IP_TRANSPARENT : IPV6_TRANSPARENT,
                   &one, sizeof one) < 0)
        return -errno;
    return bind_source(fd, source);
}

/* Connects to connection->upstream: 0 when it is connected, -EINPROGRESS or another -errno. */
static int begin_connect(struct connection *connection)
{
    struct loop *loop = &connection->worker->loop;
    struct watch *watch = &connection->side[UPSTREAM].watch;
    int family = address_is_ipv4(&connection->upstream) ? AF_INET : AF_INET6;
    int result, watched;

    watch->fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
    if (watch->fd < 0)
        return -errno;
    result = prepare_socket(connection, watch->fd);
    if (result == 0)
        result = connect_socket(watch->fd, &connection->upstream);
    if (result == 0 || result == -EINPROGRESS) {
        watch->ready = connecting_ready;
        watched = loop_watch(loop, watch, SIDE_EVENTS);
        result = watched < 0 ? watched : result;
    }
    if (result == -EINPROGRESS)
        loop_set_timer(
            loop, &connection->timer,
            atomic_load_explicit(&connection->worker->dp->connect_ms, memory_order_relaxed),
            connecting_expired);
    else if (result < 0)
        loop_close_watch(loop, watch);
    return result;
}

/* The next one that is not ejected; after all of those, the ejected ones. NULL: all were tried. */
static struct endpoint *next_endpoint(struct connection *connection)
{
    const struct cluster *cluster = connection->cluster;
    uint64_t since_ms = ejected_since(connection->worker->dp, connection->worker->loop.now_ms);
    struct endpoint *endpoint;
    uint32_t attempt;

    while (connection->attempts < cluster->count) {
        attempt = connection->attempts++;
        endpoint = cluster->endpoints[(connection->first_endpoint + attempt) % cluster->count];
        if (attempt >= MAX_POSTPONED || !endpoint_is_ejected(endpoint, since_ms))
            return endpoint;
        connection->postponed |= UINT64_C(1) << attempt;
    }
    if (!connection->postponed)
        return NULL;
    attempt = (uint32_t)__builtin_ctzll(connection->postponed);
    connection->postponed &= connection->postponed - 1;
    return cluster->endpoints[(connection->first_endpoint + attempt) % cluster->count];
}

bool upstream_next_endpoint(struct connection *connection)
{
    if (connection->endpoint)
        atomic_fetch_sub_explicit(&connection->endpoint->active, 1, memory_order_relaxed);
    connection->endpoint = NULL;
    if (!connection->cluster) {
        connection->upstream = default_upstream(connection);
        return connection->attempts++ == 0;
    }
    connection->endpoint = next_endpoint(connection);
    if (!connection->endpoint)
        return false;
    atomic_fetch_add_explicit(&connection->endpoint->active, 1, memory_order_relaxed);
    connection->upstream = connection->endpoint->address;
    return true;
}

static bool is_local_shortage(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOBUFS;
}

/* Whether it is about the endpoint: not about us, or the way there. */
static bool is_endpoints_doing(int error)
{
    return error == ECONNREFUSED || error == ECONNRESET || error == ETIMEDOUT ||
           error == EHOSTUNREACH;
}

static void count_failure(struct connection *connection, int error)
{
    struct worker *worker = connection->worker;

    counter_add(&worker->counters.connect_failures, 1);
    if (is_endpoints_doing(error))
        endpoint_failed(connection->endpoint, worker->loop.now_ms);
}

/* Before the downstream is connected, too. */
static void connected_ready(struct watch *watch, uint32_t events)
{
    struct connection *connection = OWNER(watch, struct connection, side[UPSTREAM].watch);

    relay_note_events(connection, UPSTREAM, events);
    connection->side[UPSTREAM].readable = true; /* an error is found by reading too */
}

static void upstream_connected(struct connection *connection)
{
    endpoint_succeeded(connection->endpoint, UINT64_MAX);
    connection->side[UPSTREAM].writable = true;
    connection->side[UPSTREAM].watch.ready = connected_ready;
    timer_cancel(&connection->worker->loop.timers, &connection->timer);
    if (connection->application < 0)
        relay_start(connection);
    else if (connection->parked)
        park_complete(connection);
    else
        unparked_await(connection);
}

/* Goes through the endpoints until one is connecting; `error` is the last one's. */
static void try_endpoints(struct connection *connection, int error)
{
    while (upstream_next_endpoint(connection)) {
        error = -begin_connect(connection);
        if (error == 0) {
            upstream_connected(connection);
            return;
        }
        if (error == EINPROGRESS)
            return;
        count_failure(connection, error);
    }
    connection_refuse(connection,
                      is_local_shortage(error) ? DP_END_NO_RESOURCES
                      : error == ETIMEDOUT     ? DP_END_UPSTREAM_TIMEOUT
                                               : DP_END_UPSTREAM_CONNECT,
                      error);
}

static void connect_failed(struct connection *connection, int error)
{
    count_failure(connection, error);
    timer_cancel(&connection->worker->loop.timers, &connection->timer);
    loop_close_watch(&connection->worker->loop, &connection->side[UPSTREAM].watch);
    try_endpoints(connection, error);
}

static void connecting_expired(struct timer *timer)
{
    connect_failed(OWNER(timer, struct connection, timer), ETIMEDOUT);
}

static void connecting_ready(struct watch *watch, uint32_t events)
{
    struct connection *connection = OWNER(watch, struct connection, side[UPSTREAM].watch);
    struct side *upstream = &connection->side[UPSTREAM];
    int error = 0;
    socklen_t length = sizeof error;

    if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
        return;
    if (getsockopt(upstream->watch.fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0)
        error = errno;
    if (error) {
        connect_failed(connection, error);
        return;
    }
    relay_note_events(connection, UPSTREAM, events);
    upstream->readable = true;
    upstream_connected(connection);
}
