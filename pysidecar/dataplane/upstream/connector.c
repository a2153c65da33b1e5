#include "upstream/connector.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <unistd.h>

#include "base/owner.h"
#include "net/socket.h"

/* Endpoints that refuse at once, before other connections get their turn. */
enum { TRIES_A_TURN = 16 };

/* The address that the application on this host shall see, or NULL if the upstream is another one
 * or it does not matter. Never one that the application could not answer to. */
static const struct mosnhook_address *
source_for_application(const struct origin *origin, const struct mosnhook_address *upstream)
{
    const struct dp_listener *listener = origin->listener;
    const struct mosnhook_address *source;

    if (!address_is_loopback(upstream) &&
        memcmp(upstream->ip, origin->original_destination.ip, sizeof upstream->ip) != 0)
        return NULL;
    if (!listener->preserve_source)
        source = &listener->application_source[address_is_ipv4(upstream) ? 0 : 1];
    else if (address_is_loopback(upstream) && !address_is_loopback(&origin->source))
        source = &origin->source;
    else
        return NULL;
    if (address_is_zero(source) || address_is_ipv4(source) != address_is_ipv4(upstream))
        return NULL;
    return source;
}

/* An application that chose a source (to pick an interface) keeps it. */
static int keep_source(const struct origin *origin, const struct mosnhook_address *upstream, int fd)
{
    const struct mosnhook_address *source = &origin->source;

    if (origin->listener->transport != DP_TRANSPORT_UNIX || address_is_loopback(upstream) ||
        address_is_loopback(source) || address_is_ipv4(source) != address_is_ipv4(upstream))
        return 0;
    return socket_bind_source(fd, source);
}

/* An inbound connection came to an address of this host, and so does one that goes on to it. */
static bool is_on_this_host(const struct origin *origin, const struct mosnhook_address *upstream)
{
    return address_is_loopback(upstream) ||
           (origin->listener->direction == DP_INBOUND &&
            memcmp(upstream->ip, origin->original_destination.ip, sizeof upstream->ip) == 0);
}

/* Marks the socket and gives it the address that the upstream shall see. 0 or -errno. */
static int prepare_socket(const struct origin *origin, const struct mosnhook_address *upstream,
                          int fd)
{
    const struct mosnhook_address *source = source_for_application(origin, upstream);
    bool ipv4 = address_is_ipv4(upstream);
    int result = socket_tune(fd);
    int one = 1;

    if (result < 0)
        return result;
    if (is_on_this_host(origin, upstream))
        socket_tune_towards_this_host(fd);
    if (!source) {
        result = socket_set_mark(fd, origin->listener->mark);
        return result < 0 ? result : keep_source(origin, upstream, fd);
    }
    result = socket_set_mark(fd, origin->listener->application_mark);
    if (result < 0)
        return result;
    if (setsockopt(fd, ipv4 ? IPPROTO_IP : IPPROTO_IPV6, ipv4 ? IP_TRANSPARENT : IPV6_TRANSPARENT,
                   &one, sizeof one) < 0)
        return -errno;
    return socket_bind_source(fd, source);
}

static void connecting_ready(struct watch *watch, uint32_t events);
static void connecting_expired(struct timer *timer);

/* Connects to the endpoint: 0 when it is connected, -EINPROGRESS or another -errno. */
static int begin_connect(struct connector *connector)
{
    struct worker *worker = connector->worker;
    struct watch *watch = &connector->watch;
    const struct mosnhook_address *upstream = &connector->choice.upstream;
    int family = address_is_ipv4(upstream) ? AF_INET : AF_INET6;
    int result, watched;

    watch->fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
    if (watch->fd < 0)
        return -errno;
    result = prepare_socket(connector->origin, upstream, watch->fd);
    if (result == 0)
        result = socket_connect(watch->fd, upstream);
    if (result == -EINPROGRESS) {
        watch->ready = connecting_ready;
        watched = loop_watch(&worker->loop, watch, EPOLLOUT);
        result = watched < 0 ? watched : result;
    }
    if (result == -EINPROGRESS)
        loop_set_timer(&worker->loop, &connector->timer, timeout_of(&worker->timeouts->connect_ms),
                       connecting_expired);
    else if (result < 0)
        loop_close_watch(&worker->loop, watch);
    return result;
}

static bool is_local_shortage(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOBUFS;
}

enum dp_end connector_end(int error)
{
    return is_local_shortage(error) ? DP_END_NO_RESOURCES
           : error == ETIMEDOUT     ? DP_END_UPSTREAM_TIMEOUT
                                    : DP_END_UPSTREAM_CONNECT;
}

bool connector_is_endpoints_doing(int error)
{
    return error == ECONNREFUSED || error == ECONNRESET || error == ETIMEDOUT ||
           error == EHOSTUNREACH;
}

static void finish(struct connector *connector, int fd)
{
    timers_release(&connector->worker->loop.timers, 1);
    if (fd >= 0) {
        trace(connector->worker, connector->session, connected, connector->choice.attempts, 0);
        endpoint_succeeded(connector->choice.endpoint, UINT64_MAX);
    }
    connector->watch.fd = -1;
    connector->done(connector, fd);
}

static void failed(struct connector *connector, int error)
{
    trace(connector->worker, connector->session, connect_failed, error, connector->choice.attempts);
    connector->error = error;
    counter_add(&connector->worker->counters.connect_failures, 1);
    if (connector_is_endpoints_doing(error))
        endpoint_failed(connector->choice.endpoint, connector->worker->loop.now_ms);
}

/* Goes through the endpoints until one is connecting, in this turn of the loop and the next ones.
 */
static void try_endpoints(struct connector *connector)
{
    int result;

    for (int i = 0; i < TRIES_A_TURN; i++) {
        if (!choice_next(&connector->choice, connector->worker, connector->origin)) {
            /* Without an error, none was available. */
            finish(connector, connector->error ? -connector->error : -ECONNREFUSED);
            return;
        }
        trace_address(connector->worker, connector->session, connecting,
                      &connector->choice.upstream);
        result = begin_connect(connector);
        if (result == -EINPROGRESS)
            return;
        if (result == 0) {
            finish(connector, connector->watch.fd);
            return;
        }
        failed(connector, -result);
    }
    task_schedule(&connector->worker->loop.tasks, &connector->task);
}

static void try_more(struct task *task)
{
    try_endpoints(OWNER(task, struct connector, task));
}

static void connect_failed(struct connector *connector, int error)
{
    failed(connector, error);
    timer_cancel(&connector->worker->loop.timers, &connector->timer);
    loop_close_watch(&connector->worker->loop, &connector->watch);
    try_endpoints(connector);
}

static void connecting_expired(struct timer *timer)
{
    struct connector *connector = OWNER(timer, struct connector, timer);

    trace(connector->worker, connector->session, expired, DP_TIMER_CONNECT, 0);
    connect_failed(connector, ETIMEDOUT);
}

static void connecting_ready(struct watch *watch, uint32_t events)
{
    struct connector *connector = OWNER(watch, struct connector, watch);
    int error;

    if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
        return;
    error = socket_take_error(watch->fd);
    if (error) {
        connect_failed(connector, error);
        return;
    }
    timer_cancel(&connector->worker->loop.timers, &connector->timer);
    loop_unwatch(&connector->worker->loop, watch);
    finish(connector, watch->fd);
}

void connector_start(struct connector *connector)
{
    connector->watch = (struct watch){.fd = -1};
    connector->timer = (struct timer){.index = TIMER_OFF};
    connector->task = (struct task){.run = try_more};
    connector->error = 0;
    if (timers_reserve(&connector->worker->loop.timers, 1))
        try_endpoints(connector);
    else
        connector->done(connector, -ENOMEM);
}

void connector_cancel(struct connector *connector)
{
    task_cancel(&connector->worker->loop.tasks, &connector->task);
    timer_cancel(&connector->worker->loop.timers, &connector->timer);
    timers_release(&connector->worker->loop.timers, 1);
    loop_close_watch(&connector->worker->loop, &connector->watch);
}
