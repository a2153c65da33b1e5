/* The `unix` transport: the socket is parked, and handed to the sidecar with its destination.
 * See contract.h for the protocol. */
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/un.h>

#include "mosnhook.h"
#include "sys.h"

enum {
    BACKLOG_CHECK_MS = 5,
    ERRNO_MAX = 4095,
};

/* A control socket, not connected yet: its descriptor, or an outcome (negative). */
static int open_control(void)
{
    int fd = socket_open(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0);

    /* No descriptor left, or a sandbox that allows no such socket. */
    return fd < 0 ? OUTCOME_OTHER_TRANSPORT : fd;
}

/* 0 or an outcome. */
static int connect_control(int fd, const struct attempt *attempt)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int64_t give_up = 0;

    __builtin_memcpy(address.sun_path, attempt->view.control_path, sizeof address.sun_path);
    for (;;) {
        int result = sys_connect(fd, &address, sizeof address);

        if (result == 0)
            return 0;
        if (result == -EINTR)
            continue;
        if (result != -EAGAIN) /* not listening: dead; not to be seen from here: chroot, rights */
            return result == -ECONNREFUSED ? OUTCOME_AWAY : OUTCOME_OTHER_TRANSPORT;
        /* The backlog is full. */
        if (!give_up)
            give_up = wait_full_deadline(attempt);
        if (now_ns() >= give_up || !page_serving(&attempt->view))
            return OUTCOME_AWAY;
        wait_briefly(BACKLOG_CHECK_MS);
    }
}

/* Only an IPv6 socket without IPv4 parks to go to: lets it speak IPv4 too, if it is not bound. */
static bool allow_ipv4(struct attempt *attempt)
{
    int off = 0;

    attempt->v6_only =
        attempt->family == AF_INET6 &&
        sys_setsockopt(attempt->fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) == 0;
    return attempt->v6_only;
}

static bool is_connected(int fd)
{
    struct sockaddr_storage peer;
    socklen_t length = sizeof peer;

    return sys_getpeername(fd, &peer, &length) == 0;
}

/* EINPROGRESS, unless somebody else listens at the park now, or the socket has an error: one that
 * the sidecar left there when it made an earlier connect fail, or the park's, where nobody parks
 * any more: the page is a dead sidecar's, though it looks alive (and the control socket may be its
 * successor's). */
static int check_parked(struct attempt *attempt)
{
    int error = socket_take_error(attempt->fd), earlier;

    if (is_connected(attempt->fd)) {
        socket_disconnect(attempt);
        return OUTCOME_AWAY;
    }
    if (!error)
        return EINPROGRESS;
    earlier = memo_true_error(attempt->fd, error);
    socket_disconnect(attempt);
    return earlier == error ? OUTCOME_AWAY : earlier;
}

/* EINPROGRESS when the socket is parked at `*via`; else what connect() said, which is its answer to
 * an application that connects again. */
static int park(struct attempt *attempt, struct mosnhook_address *via)
{
    const struct page_view *view = &attempt->view;
    uint8_t order[MOSNHOOK_MAX_PARKS];
    size_t count = socket_order(attempt, view->parks, view->park_count, order);
    int result = OUTCOME_OTHER_TRANSPORT;

    for (size_t i = 0; i < count; i++) {
        *via = view->parks[order[i]];
        result = socket_connect_now(attempt, via);
        if (result == ENETUNREACH && address_is_ipv4(via) &&
            !address_is_ipv4(&attempt->destination)) /* IPV6_V6ONLY */
            result = allow_ipv4(attempt) ? socket_connect_now(attempt, via) : EADDRNOTAVAIL;
        if (result != EADDRNOTAVAIL) /* else its ports are used up, the next one has others */
            break;
    }
    if (result == EINPROGRESS)
        result = check_parked(attempt);
    return result;
}

static int send_request(int control, const struct attempt *attempt, uint16_t flags)
{
    struct mosnhook_request request = {
        .magic = MOSNHOOK_MAGIC,
        .version = MOSNHOOK_VERSION,
        .flags = flags,
        .destination = attempt->destination,
    };
    struct iovec bytes = {&request, sizeof request};
    _Alignas(struct cmsghdr) char rights[CMSG_SPACE(sizeof(int))] = {0};
    struct msghdr message = {
        .msg_iov = &bytes, .msg_iovlen = 1, .msg_control = rights, .msg_controllen = sizeof rights};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    long result;

    __builtin_memcpy(request.command, environment.command, sizeof request.command);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    __builtin_memcpy(CMSG_DATA(header), &attempt->fd, sizeof attempt->fd);
    do
        result = sys_sendmsg(control, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (result == -EINTR);
    return result == sizeof request ? 0 : OUTCOME_AWAY;
}

/* The answer, if it is there: 0 is `relay`, EAGAIN none yet; with OUTCOME_DIRECT and
 * OUTCOME_CONNECT there is an endpoint. */
static int read_answer(int control, struct attempt *attempt)
{
    struct mosnhook_answer answer = {.magic = 0};
    long size = sys_recv(control, &answer, sizeof answer, MSG_DONTWAIT);

    if (size == -EAGAIN || size == -EINTR)
        return EAGAIN;
    if (size <= 0) /* hung up without an answer */
        return OUTCOME_AWAY;
    if (size == sizeof answer && answer.magic == MOSNHOOK_MAGIC &&
        answer.version == MOSNHOOK_VERSION) {
        if (answer.action == MOSNHOOK_RELAY)
            return 0;
        if (answer.action == MOSNHOOK_DIRECT || answer.action == MOSNHOOK_CONNECT) {
            attempt->endpoint = answer.endpoint;
            return answer.action == MOSNHOOK_DIRECT ? OUTCOME_DIRECT : OUTCOME_CONNECT;
        }
        if (answer.action == MOSNHOOK_REFUSE && answer.error > 0 && answer.error <= ERRNO_MAX)
            return answer.error;
        if (answer.action == MOSNHOOK_AWAY)
            return OUTCOME_AWAY;
    }
    return ECONNREFUSED;
}

/* Waits for the answer. A cancelled thread closes the control socket. */
static int receive_answer(int control, struct attempt *attempt)
{
    int result;

    do {
        result = attempt->waits ? wait_ready(attempt, control, POLLIN, control)
                                : wait_shortly(attempt, control, POLLIN);
        if (result == 0)
            result = read_answer(control, attempt);
    } while (result == EAGAIN);
    return result;
}

/* Whether the sidecar leaves the connection to us. 0: no, it is to be handed over. EINPROGRESS or
 * EINTR: likewise, but nobody waits for that any more. */
static int ask(int control, struct attempt *attempt)
{
    int result = connect_control(control, attempt), late;

    if (result == 0)
        result = send_request(control, attempt, MOSNHOOK_ASKS);
    if (result == 0)
        result = receive_answer(control, attempt);
    if (result == EINPROGRESS || result == EINTR) {
        /* From now on the sidecar cannot answer, and finds that out when it tries: so that both
         * agree whether it has. */
        sys_shutdown(control, SHUT_RD);
        late = read_answer(control, attempt);
        if (late != EAGAIN && late != OUTCOME_AWAY)
            result = late;
    }
    if (result == OUTCOME_DIRECT && attempt->endpoint.port)
        memo_write(attempt->fd, MOSNHOOK_MEMO_DIRECT, &attempt->destination);
    return result;
}

/* The sidecar says that the socket is connected. A second connect() completes the first one in the
 * kernel's eyes, so that a third says EISCONN as it should; and a failure that the sidecar does not
 * know of comes out. */
static int finish(struct attempt *attempt, const struct mosnhook_address *via)
{
    int result;

    result = socket_settle(attempt, socket_connect_now(attempt, via), via);
    return result == EISCONN ? 0 : result;
}

/* A socket that cannot be parked is connected to where the sidecar says. */
static int connect_unparked(struct attempt *attempt, int control)
{
    int result = connect_control(control, attempt);

    if (result == 0)
        result = send_request(control, attempt, attempt->waits ? MOSNHOOK_WAITS : 0);
    if (result == 0)
        result = receive_answer(control, attempt);
    if (result == EINPROGRESS) /* SO_SNDTIMEO, or no time to wait: nothing is in progress */
        return attempt->waits ? ETIMEDOUT : OUTCOME_AWAY;
    if (result != OUTCOME_CONNECT)
        return result == 0 ? ECONNREFUSED : result;
    memo_write(attempt->fd, MOSNHOOK_MEMO_RELAYED, &attempt->destination);
    result = socket_connect_now(attempt, &attempt->endpoint);
    if (result != EINPROGRESS && result != 0)
        return result;
    return attempt->waits ? finish(attempt, &attempt->endpoint) : EINPROGRESS;
}

int transport_unix(struct attempt *attempt)
{
    struct mosnhook_address via;
    int control = open_control(), result, unasked = 0;
    bool asks = attempt->view.asks, waits = attempt->waits;

    if (control < 0)
        return control;
    if (attempt->multipath) {
        result = connect_unparked(attempt, control);
        sys_close(control);
        return result;
    }
    if (asks) {
        result = ask(control, attempt);
        if (result == EINPROGRESS || result == EINTR) {
            unasked = result;
            waits = false;
        } else if (result != 0) {
            sys_close(control);
            return result;
        }
    }
    result = park(attempt, &via);
    if (result != EINPROGRESS) {
        sys_close(control);
        return result < 0 ? result : socket_settle(attempt, result, &via);
    }
    memo_write(attempt->fd, MOSNHOOK_MEMO_RELAYED, &attempt->destination);
    /* As late as that: it wakes a worker, which shall find the request when it looks. */
    result = asks ? 0 : connect_control(control, attempt);
    if (result == 0)
        result = send_request(control, attempt, MOSNHOOK_PARKED | (waits ? MOSNHOOK_WAITS : 0));
    if (result == 0 && waits)
        result = receive_answer(control, attempt);
    sys_close(control);
    if (result == 0 && waits)
        return finish(attempt, &via);
    if (result == 0)
        return unasked ? unasked : EINPROGRESS;
    /* Timed out or interrupted: as with any connect(), it goes on without the caller. */
    if (result != EINPROGRESS && result != EINTR)
        socket_disconnect(attempt);
    return result;
}
