/* Sockets that cannot be parked (MPTCP knows no simultaneous open; see contract.h). The application
 * connects its socket itself, to a listener that is there for this connection alone: we would have
 * to wait in its connect(). For a caller that waits the upstream is connected first, so that it
 * learns the true errno. */
#include <errno.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "internal.h"

enum {
    STRANGERS = 128, /* that may connect before the application does */
};

/* A listener on loopback: its fd or -errno. */
static int open_listener(const struct mosnhook_address *host)
{
    struct sockaddr_storage name;
    socklen_t length = address_to_socket(host, &name);
    int fd = socket(name.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
    int error;

    if (fd < 0)
        return -errno;
    tune_socket(fd); /* accepted sockets inherit it */
    tune_towards_this_host(fd);
    if (bind(fd, (struct sockaddr *)&name, length) == 0 && listen(fd, STRANGERS) == 0)
        return fd;
    error = errno;
    close(fd);
    return -error;
}

/* Of the version that the application's socket speaks for sure: an AF_INET6 socket that goes to an
 * IPv4 address speaks that. Where the host has no IPv6, any other one has to do. */
static int open_reachable(const struct connection *connection)
{
    bool ipv4 = address_is_ipv4(&connection->original_destination);
    int domain, listener;
    socklen_t length = sizeof domain;

    if (getsockopt(connection->application, SOL_SOCKET, SO_DOMAIN, &domain, &length) < 0)
        return -errno;
    if (ipv4 || domain == AF_INET)
        return open_listener(&loopback_address[0]);
    listener = open_listener(&loopback_address[1]);
    return listener >= 0 ? listener : open_listener(&loopback_address[0]);
}

static bool send_address(const struct connection *connection)
{
    struct mosnhook_page *page = connection->worker->dp->page;
    struct mosnhook_answer answer = {
        .magic = MOSNHOOK_MAGIC, .version = MOSNHOOK_VERSION, .action = MOSNHOOK_CONNECT};

    if (page)
        __atomic_store_n(&page->elsewhere, 1, __ATOMIC_RELAXED);
    return address_of_local(connection->side[DOWNSTREAM].watch.fd, &answer.endpoint) == 0 &&
           send(connection->request.fd, &answer, sizeof answer, MSG_NOSIGNAL | MSG_DONTWAIT) ==
               sizeof answer;
}

/* Whether it is the application's socket that is connected to this one. */
static bool is_from_application(const struct connection *connection, int fd)
{
    struct mosnhook_address peer, source;

    return address_of_peer(fd, &peer) == 0 &&
           address_of_local(connection->application, &source) == 0 && address_equal(&peer, &source);
}

static void take(struct connection *connection, int fd)
{
    struct watch *watch = &connection->side[DOWNSTREAM].watch;

    loop_close_watch(&connection->worker->loop, watch);
    watch->fd = fd;
    downstream_waits(connection);
    (void)address_of_peer(fd, &connection->source);
    if (loop_watch(&connection->worker->loop, watch, SIDE_EVENTS) < 0)
        connection_close(connection, DP_END_NO_RESOURCES, ENOMEM);
    else
        downstream_completed(connection);
}

static void expecting_ready(struct watch *watch, uint32_t events)
{
    struct connection *connection = OWNER(watch, struct connection, side[DOWNSTREAM].watch);
    int listener = watch->fd, fd;

    (void)events;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (is_from_application(connection, fd)) {
            take(connection, fd);
            return;
        }
        close(fd); /* a stranger, whom the socket's options reset */
    }
}

static void expecting_expired(struct timer *timer)
{
    connection_close(OWNER(timer, struct connection, timer), DP_END_DOWNSTREAM_GONE, 0);
}

void unparked_await(struct connection *connection)
{
    struct worker *worker = connection->worker;
    struct watch *watch = &connection->side[DOWNSTREAM].watch;
    uint32_t header_ms = atomic_load_explicit(&worker->dp->header_ms, memory_order_relaxed);
    int listener = open_reachable(connection);

    if (listener >= 0) {
        watch->fd = listener;
        watch->ready = expecting_ready;
        connection_enter(connection, connection->waits ? PHASE_COMPLETING : PHASE_EXPECTED);
        loop_set_timer(&worker->loop, &connection->timer, header_ms,
                       connection->waits ? completing_expired : expecting_expired);
        if (loop_watch(&worker->loop, watch, EPOLLIN) < 0)
            listener = -ENOMEM;
    }
    if (listener < 0) {
        connection_refuse(connection, DP_END_NO_RESOURCES, -listener);
        return;
    }
    if (!send_address(connection)) {
        connection_close(connection, DP_END_DOWNSTREAM_GONE, 0);
        return;
    }
    connection->waits = false; /* it was answered */
    foreign_close_request(connection);
}

void unparked_start(struct connection *connection)
{
    (void)address_of_local(connection->application, &connection->source); /* it may be bound */
    if (connection->waits)
        upstream_start(connection);
    else if (clients_may_wait(connection))
        unparked_await(connection);
    else
        connection_close(connection, DP_END_TOO_MANY_WAIT, 0);
}
