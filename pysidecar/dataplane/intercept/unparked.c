#include "intercept/unparked.h"

#include <errno.h>
#include <netinet/in.h>
#include <unistd.h>

#include "base/owner.h"
#include "base/sockaddr.h"
#include "intercept/clients.h"
#include "net/foreign.h"
#include "net/socket.h"

enum {
    STRANGERS = 128, /* strangers that may connect before the application does */
};

/* Opens a listener on loopback. Its fd or -errno. */
static int open_listener(const struct mosnhook_address *host)
{
    struct sockaddr_storage name;
    socklen_t length = address_to_socket(host, &name);
    int fd = socket(name.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
    int error;

    if (fd < 0)
        return -errno;
    socket_tune(fd); /* accepted sockets inherit it */
    socket_tune_towards_this_host(fd);
    if (bind(fd, (struct sockaddr *)&name, length) == 0 && listen(fd, STRANGERS) == 0)
        return fd;
    error = errno;
    close(fd);
    return -error;
}

/* A listener of the IP version that the application's socket surely speaks: IPv4 for an AF_INET6
 * socket that goes to an IPv4 address. Where the host has no IPv6, IPv4 has to do. */
static int open_reachable(const struct session *session, const struct request *request)
{
    bool ipv4 = address_is_ipv4(&session->origin.original_destination);
    int domain, listener;
    socklen_t length = sizeof domain;

    if (getsockopt(request->application, SOL_SOCKET, SO_DOMAIN, &domain, &length) < 0)
        return -errno;
    if (ipv4 || domain == AF_INET)
        return open_listener(&loopback_address[0]);
    listener = open_listener(&loopback_address[1]);
    return listener >= 0 ? listener : open_listener(&loopback_address[0]);
}

static bool send_address(const struct session *session, const struct request *request)
{
    struct mosnhook_page *page = session->worker->page;
    struct mosnhook_answer answer = {
        .magic = MOSNHOOK_MAGIC, .version = MOSNHOOK_VERSION, .action = MOSNHOOK_CONNECT};

    if (page)
        __atomic_store_n(&page->elsewhere, 1, __ATOMIC_RELAXED);
    return address_of_local(session->downstream.watch.fd, &answer.endpoint) == 0 &&
           control_answer(request, &answer);
}

/* Whether the application's socket is the peer of this one. */
static bool is_from_application(const struct request *request, int fd)
{
    struct mosnhook_address peer, source;

    return address_of_peer(fd, &peer) == 0 &&
           address_of_local(request->application, &source) == 0 && address_equal(&peer, &source);
}

static void take_connection(struct session *session, int fd)
{
    struct loop *loop = &session->worker->loop;

    loop_close_watch(loop, &session->downstream.watch);
    channel_init(&session->downstream);
    session->downstream.watch.fd = fd;
    session_downstream_waits(session);
    (void)address_of_peer(fd, &session->origin.source);
    if (channel_watch(loop, &session->downstream) < 0)
        session_close(session, DP_END_NO_RESOURCES, ENOMEM);
    else
        control_completed(session);
}

static void expecting_ready(struct watch *watch, uint32_t events)
{
    struct session *session = OWNER(watch, struct session, downstream.watch);
    int fd;

    (void)events;
    while ((fd = accept4(watch->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (is_from_application(session->intercepted, fd)) {
            take_connection(session, fd);
            return;
        }
        close(fd); /* a stranger, who gets a reset (see socket_tune) */
    }
}

static void expecting_expired(struct timer *timer)
{
    struct session *session = OWNER(timer, struct session, timer);

    trace(session->worker, session->id, expired, DP_TIMER_COMPLETE, 0);
    session_close(session, DP_END_DOWNSTREAM_GONE, 0);
}

void unparked_await(struct session *session, struct request *request)
{
    struct worker *worker = session->worker;
    struct watch *watch = &session->downstream.watch;
    int listener = open_reachable(session, request);

    if (listener >= 0) {
        watch->fd = listener;
        watch->ready = expecting_ready;
        session_enter(session, request->waits ? SESSION_COMPLETING : SESSION_EXPECTED);
        loop_set_timer(&worker->loop, &session->timer, timeout_of(&worker->timeouts->header_ms),
                       request->waits ? session_completing_expired : expecting_expired);
        if (loop_watch(&worker->loop, watch, EPOLLIN) < 0)
            listener = -ENOMEM;
    }
    if (listener < 0) {
        session_refuse(session, DP_END_NO_RESOURCES, -listener);
        return;
    }
    if (!send_address(session, request)) {
        session_close(session, DP_END_DOWNSTREAM_GONE, 0);
        return;
    }
    request->waits = false; /* it was answered */
    foreign_close_watch(worker, request->uid, &request->control);
}

void unparked_start(struct session *session, struct request *request)
{
    (void)address_of_local(request->application, &session->origin.source); /* it may be bound */
    if (request->waits)
        session_arrived(session);
    else if (clients_may_wait(session))
        unparked_await(session, request);
    else
        session_close(session, DP_END_TOO_MANY_WAIT, 0);
}
