/* Downstream connections that the connect hook asks for: one request on a connection of the control
 * socket, with the application's own socket (see contract.h). */
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "internal.h"

/* The descriptor that came with the message, or -1. There was room for one. */
static int take_fd(struct msghdr *message)
{
    const struct cmsghdr *header = CMSG_FIRSTHDR(message);
    int fd = -1;

    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
        header->cmsg_len == CMSG_LEN(sizeof fd))
        memcpy(&fd, CMSG_DATA(header), sizeof fd);
    return fd;
}

static bool request_is_valid(const struct mosnhook_request *request, ssize_t size)
{
    return size == sizeof *request && request->magic == MOSNHOOK_MAGIC &&
           request->version == MOSNHOOK_VERSION && !address_is_unspecified(&request->destination);
}

/* Whether the request is one that its socket is fit for. A socket that could be parked must be. */
static bool socket_is_valid(const struct mosnhook_request *request, int fd)
{
    int protocol = fd < 0 ? -1 : foreign_protocol(fd);

    return protocol == IPPROTO_TCP ? request->flags & (MOSNHOOK_PARKED | MOSNHOOK_ASKS)
                                   : protocol >= 0 && !(request->flags & MOSNHOOK_PARKED);
}

static bool is_trusted(const struct connection *connection)
{
    return foreign_is_trusted(connection->worker->dp, connection->uid);
}

/* Receives a message, and the application's socket with it. As recvmsg(), with its `flags`.
 *
 * Of those whom we do not trust the message stays in the queue: to take it with more descriptors
 * than there is room for is to close those. */
static ssize_t receive(struct connection *connection, struct mosnhook_request *request, int *flags)
{
    int peek = is_trusted(connection) ? 0 : MSG_PEEK;
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    struct iovec vector = {request, sizeof *request};
    struct msghdr message = {.msg_iov = &vector,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = CMSG_LEN(sizeof(int))};
    ssize_t size =
        recvmsg(connection->request.fd, &message, peek | MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

    /* Also of an empty message: descriptors come with any. */
    if (size >= 0)
        connection->application = take_fd(&message);
    *flags = message.msg_flags;
    return size;
}

void control_take_unread(struct connection *connection)
{
    struct mosnhook_request request;
    int flags;

    if (connection->request.fd < 0)
        return;
    /* What is not in the queue by now is refused: its sender learns that nobody takes it. */
    shutdown(connection->request.fd, SHUT_RD);
    if (connection->application < 0 &&
        request_is_valid(&request, receive(connection, &request, &flags)))
        connection->original_destination = request.destination;
}

/* False: there was none. */
static bool read_request(struct connection *connection)
{
    struct mosnhook_request request;
    int flags;
    ssize_t size = receive(connection, &request, &flags);

    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    timer_cancel(&connection->worker->loop.timers, &connection->timer);
    if (size <= 0) {
        connection_close(connection, DP_END_HEADER_TRUNCATED, size < 0 ? errno : 0);
        return true;
    }
    if (flags & MSG_CTRUNC && connection->application < 0) {
        connection_close(connection, DP_END_NO_RESOURCES, EMFILE);
        return true;
    }
    if (!request_is_valid(&request, size) || flags & (MSG_TRUNC | MSG_CTRUNC) ||
        !socket_is_valid(&request, connection->application) ||
        (connection->asked && request.flags & MOSNHOOK_ASKS)) {
        connection_close(connection, DP_END_HEADER_MALFORMED, 0);
        return true;
    }
    if (!is_trusted(connection)) /* now that we have its only descriptor */
        (void)recv(connection->request.fd, NULL, 0, MSG_DONTWAIT);
    if (!foreign_is_here(connection->worker->dp, connection->application)) {
        connection_close(connection, DP_END_OTHER_NAMESPACE, 0);
        return true;
    }
    connection->waits = request.flags & MOSNHOOK_WAITS;
    connection->parked = request.flags & MOSNHOOK_PARKED;
    connection->original_destination = request.destination;
    connection->original_destination.reserved = 0;
    memcpy(connection->command, request.command, sizeof connection->command);
    if (connection->unserved) {
        connection->waits |= request.flags & MOSNHOOK_ASKS || !connection->parked;
        if (connection->parked)
            (void)park_inspect(connection);
        connection_refuse(connection, DP_END_NO_RESOURCES, EMFILE);
        return true;
    }
    if (request.flags & MOSNHOOK_ASKS) {
        connection->asked = true;
        direct_ask(connection);
        return true;
    }
    if (!connection->parked) {
        unparked_start(connection);
        return true;
    }
    if (!connection->waits) {
        foreign_close_request(connection);
        connection_release_fds(connection, FDS_PER_REQUEST - 1);
    }
    if (park_inspect(connection))
        upstream_start(connection);
    else
        connection_close(connection, DP_END_DOWNSTREAM_GONE, 0);
    return true;
}

static void read_requests(struct connection *connection)
{
    /* One that only asked may be followed by another one. */
    while (atomic_load_explicit(&connection->phase, memory_order_relaxed) == PHASE_REQUEST &&
           read_request(connection))
        ;
}

static void request_ready(struct watch *watch, uint32_t events)
{
    (void)events;
    read_requests(OWNER(watch, struct connection, request));
}

static void identify(struct connection *connection)
{
    struct ucred caller;
    socklen_t length = sizeof caller;

    if (getsockopt(connection->request.fd, SOL_SOCKET, SO_PEERCRED, &caller, &length) < 0)
        return;
    connection->pid = (uint32_t)caller.pid;
    connection->uid = caller.uid;
}

/* Without memory for a connection: its socket is to fail all the same. */
static void refuse_unopened(struct worker *worker, int fd)
{
    struct connection connection = {
        .worker = worker, .request.fd = fd, .application = -1, .uid = UINT32_MAX};

    identify(&connection);
    control_take_unread(&connection);
    if (connection.application >= 0)
        park_abandon(&connection, ENOMEM);
    foreign_close_request(&connection);
    foreign_close(&connection, &connection.application);
}

void control_accept(struct worker *worker, const struct listener *listener, int fd)
{
    struct connection *connection =
        connection_open(worker, listener, PHASE_REQUEST, FDS_PER_REQUEST);
    uint32_t header_ms = atomic_load_explicit(&worker->dp->header_ms, memory_order_relaxed);

    if (!connection) {
        refuse_unopened(worker, fd);
        return;
    }
    connection->request.fd = fd;
    identify(connection);
    connection->request.ready = request_ready;
    loop_set_timer(&worker->loop, &connection->timer, header_ms, arrival_expired);
    /* The request nearly always came with the connection. */
    read_requests(connection);
    if (atomic_load_explicit(&connection->phase, memory_order_relaxed) != PHASE_REQUEST)
        return;
    if (!clients_may_wait(connection))
        connection_close(connection, DP_END_TOO_MANY_WAIT, 0);
    else if (loop_watch(&worker->loop, &connection->request, EPOLLIN | EPOLLET) < 0)
        connection_close(connection, DP_END_NO_RESOURCES, errno);
}

void control_refuse(struct worker *worker, const struct listener *listener, int fd)
{
    struct connection *connection = connection_open(worker, listener, PHASE_REQUEST, 0);

    if (!connection) {
        refuse_unopened(worker, fd);
        return;
    }
    connection->request.fd = fd;
    connection->unserved = true;
    identify(connection);
    (void)read_request(connection);
    /* Where no request came yet, its sender finds that we have hung up. */
    if (atomic_load_explicit(&connection->phase, memory_order_relaxed) == PHASE_REQUEST)
        connection_close(connection, DP_END_NO_RESOURCES, EMFILE);
}
