/* Downstream connections that the connect hook asks for: one request on a connection of the control
 * socket, with the application's own socket (see contract.h). */
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "internal.h"

enum { MAX_FDS = 4 }; /* that are received to be closed; the kernel closes further ones */

/* Stores the fd that came with the message, or -1 when it was not exactly one. */
static int take_fd(struct msghdr *message)
{
    int fds[MAX_FDS], fd = -1;
    size_t count = 0;

    for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header;
         header = CMSG_NXTHDR(message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
            continue;
        count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        if (count > MAX_FDS)
            count = MAX_FDS;
        memcpy(fds, CMSG_DATA(header), count * sizeof(int));
        if (count == 1 && !(message->msg_flags & MSG_CTRUNC))
            fd = fds[0];
        else
            for (size_t i = 0; i < count; i++)
                close(fds[i]);
    }
    return fd;
}

static bool is_tcp(int fd)
{
    int protocol;
    socklen_t length = sizeof protocol;

    return getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &length) == 0 &&
           (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP);
}

static bool request_is_valid(const struct mosnhook_request *request, ssize_t size)
{
    return size == sizeof *request && request->magic == MOSNHOOK_MAGIC &&
           request->version == MOSNHOOK_VERSION && !address_is_unspecified(&request->destination) &&
           (request->flags & (MOSNHOOK_WAITS | MOSNHOOK_PARKED | MOSNHOOK_ASKS)) != 0;
}

/* Receives a message, and the application's socket with it. As recvmsg(), with its `flags`. */
static ssize_t receive(struct connection *connection, struct mosnhook_request *request, int *flags)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(MAX_FDS * sizeof(int))];
    } control;
    struct iovec vector = {request, sizeof *request};
    struct msghdr message = {.msg_iov = &vector,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    ssize_t size = recvmsg(connection->request.fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

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

    if (connection->request.fd < 0 || connection->application >= 0)
        return;
    /* What is not in the queue by now is refused: its sender learns that nobody takes it. */
    shutdown(connection->request.fd, SHUT_RD);
    if (request_is_valid(&request, receive(connection, &request, &flags)))
        connection->original_destination = request.destination;
}

static void read_request(struct connection *connection)
{
    struct mosnhook_request request;
    struct ucred caller;
    socklen_t length = sizeof caller;
    int flags;
    ssize_t size = receive(connection, &request, &flags);

    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    timer_cancel(&connection->worker->timers, connection);
    if (getsockopt(connection->request.fd, SOL_SOCKET, SO_PEERCRED, &caller, &length) == 0) {
        connection->pid = (uint32_t)caller.pid;
        connection->uid = caller.uid;
    }
    if (size <= 0) {
        connection_close(connection, DP_END_HEADER_TRUNCATED, size < 0 ? errno : 0);
        return;
    }
    if (flags & MSG_CTRUNC && connection->application < 0) {
        connection_close(connection, DP_END_NO_RESOURCES, EMFILE);
        return;
    }
    if (!request_is_valid(&request, size) || flags & MSG_TRUNC || connection->application < 0 ||
        !is_tcp(connection->application)) {
        connection_close(connection, DP_END_HEADER_MALFORMED, 0);
        return;
    }
    connection->waits = request.flags & MOSNHOOK_WAITS;
    connection->parked = request.flags & MOSNHOOK_PARKED;
    connection->original_destination = request.destination;
    connection->original_destination.reserved = 0;
    memcpy(connection->command, request.command, sizeof connection->command);
    if (request.flags & MOSNHOOK_ASKS) {
        direct_ask(connection);
        return;
    }
    if (!connection->waits) {
        close(connection->request.fd);
        connection->request.fd = -1;
        connection_release_fds(connection, FDS_PER_REQUEST - 1);
    }
    if (connection->parked && !park_inspect(connection))
        connection_close(connection, DP_END_DOWNSTREAM_GONE, 0);
    else
        upstream_start(connection);
}

void control_event(struct connection *connection)
{
    if (atomic_load_explicit(&connection->phase, memory_order_relaxed) == PHASE_REQUEST)
        read_request(connection);
}

/* Without memory for a connection: its socket is to fail all the same. */
static void refuse_unopened(struct worker *worker, int fd)
{
    struct connection connection = {
        .worker = worker, .request = {fd, WATCH_REQUEST}, .application = -1};

    control_take_unread(&connection);
    close(fd);
    if (connection.application < 0)
        return;
    park_abandon(&connection, ENOMEM);
    close(connection.application);
}

void control_accept(struct worker *worker, const struct listener *listener, int fd)
{
    struct connection *connection = connection_open(worker, listener, PHASE_REQUEST);
    uint32_t header_ms = atomic_load_explicit(&worker->dp->header_ms, memory_order_relaxed);

    if (!connection) {
        refuse_unopened(worker, fd);
        return;
    }
    connection->request.fd = fd;
    if (!timer_set(&worker->timers, connection, worker->now_ms + header_ms)) {
        connection_close(connection, DP_END_NO_RESOURCES, ENOMEM);
        return;
    }
    /* The request nearly always came with the connection. */
    read_request(connection);
    if (atomic_load_explicit(&connection->phase, memory_order_relaxed) != PHASE_REQUEST)
        return;
    if (worker_watch(worker, &connection->request, EPOLLIN | EPOLLET) < 0)
        connection_close(connection, DP_END_NO_RESOURCES, errno);
}
