/* The `unix` transport: the socket is parked, and handed to the sidecar with its destination. See
 * contract.h for the protocol, docs/paths/unix.md for the whole. */
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/un.h>

#include "mosnhook.h"
#include "sys.h"

enum { ERRNO_MAX = 4095 };

/* Opens a control socket, not connected yet. Its descriptor or -errno. While the whole system is
 * out of files, the sidecar could not accept either: that counts as full. */
static int open_control(struct attempt *attempt)
{
    int fd;

    do
        fd = socket_open(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0);
    while (fd == -ENFILE && wait_while_full(attempt));
    return fd;
}

/* 0 or an outcome. */
static int connect_control(int fd, struct attempt *attempt)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int result;

    __builtin_memcpy(address.sun_path, attempt->view.control_path, sizeof address.sun_path);
    do
        result = sys_connect(fd, &address, sizeof address);
    while (result == -EINTR || (result == -EAGAIN && wait_while_full(attempt))); /* its backlog */
    if (result == -EAGAIN || result == -ECONNREFUSED) /* not listening: dead */
        return OUTCOME_AWAY;
    return result == 0 ? 0 : OUTCOME_OTHER_TRANSPORT; /* out of reach: chroot, rights */
}

/* Lets an IPv6-only socket speak IPv4, too, if the parks are IPv4 only and it is not bound. */
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

/* EINPROGRESS, unless somebody else listens at the park now, or the socket has an error. Either the
 * sidecar left the error when it made an earlier connect fail; or nobody has the park any more: the
 * page is a dead sidecar's, though it looks alive (and the control socket may be its successor's).
 */
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

/* EINPROGRESS when the socket is parked at `*via`; else what connect() returned, which is the
 * answer if the application connects again. */
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
        if (result != EADDRNOTAVAIL) /* its ports are used up; the next park has others */
            break;
    }
    if (result == EINPROGRESS)
        result = check_parked(attempt);
    return result;
}

static int send_request(int control, struct attempt *attempt, uint16_t flags)
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
    /* A user may have RLIMIT_NOFILE descriptors in flight at most. */
    do
        result = sys_sendmsg(control, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (result == -EINTR || (result == -ETOOMANYREFS && wait_while_full(attempt)));
    return result == sizeof request ? 0 : OUTCOME_AWAY;
}

/* Reads the answer, if it is there: 0 for `relay`, EAGAIN for none yet. OUTCOME_DIRECT and
 * OUTCOME_CONNECT come with an endpoint. */
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

/* Waits for the answer, at most `budget_ms` if the caller does not wait for the upstream. A
 * cancelled thread closes the control socket. */
static int receive_answer(int control, struct attempt *attempt, int budget_ms)
{
    int64_t deadline = attempt->waits ? 0 : now_ns() + (int64_t)budget_ms * MS;
    int result;

    do {
        result = attempt->waits ? wait_ready(attempt, control, POLLIN, control)
                                : wait_until(deadline, control, POLLIN);
        if (result == 0)
            result = read_answer(control, attempt);
    } while (result == EAGAIN);
    return result;
}

/* From now on the sidecar cannot answer, and notices when it tries, so both agree on whether it
 * has. OUTCOME_AWAY if it has not. */
static int stop_waiting(int control, struct attempt *attempt)
{
    int result;

    sys_shutdown(control, SHUT_RD);
    result = read_answer(control, attempt);
    return result == EAGAIN ? OUTCOME_AWAY : result;
}

/* Whether the sidecar leaves the connection to us. 0: no, hand the socket over. EINPROGRESS or
 * EINTR: likewise, but the caller no longer waits. */
static int ask(int control, struct attempt *attempt)
{
    int result = connect_control(control, attempt), late;

    if (result == 0)
        result = send_request(control, attempt, MOSNHOOK_ASKS);
    if (result == 0)
        result = receive_answer(control, attempt, FULL_BUDGET_NONBLOCKING_MS);
    if (result == EINPROGRESS || result == EINTR) {
        late = stop_waiting(control, attempt);
        if (late != OUTCOME_AWAY)
            result = late;
    }
    if (result == OUTCOME_DIRECT && attempt->endpoint.port)
        memo_write(attempt->fd, MOSNHOOK_MEMO_DIRECT, &attempt->destination);
    return result;
}

/* Learns where the sidecar takes a socket that cannot be parked. Even a caller that does not wait
 * for the upstream waits for this: a busy sidecar is not away. With listeners for headers, for a
 * moment, and then uses those; else for as long as a sidecar without a sign of life counts as
 * alive. */
static int receive_address(int control, struct attempt *attempt)
{
    bool listens = attempt->view.listener_count > 0;
    int result = receive_answer(control, attempt,
                                listens ? FULL_BUDGET_NONBLOCKING_MS : MOSNHOOK_STALE_AFTER_MS);

    if (result != EINPROGRESS || attempt->waits)
        return result;
    result = stop_waiting(control, attempt);
    return result == OUTCOME_AWAY && listens ? OUTCOME_OTHER_TRANSPORT : result;
}

/* Sends the request proper, and waits for the answer if there is one. 0 or as read_answer. */
static int hand_over(int control, struct attempt *attempt, uint16_t flags)
{
    int result = send_request(control, attempt, flags);

    if (result != 0)
        return result;
    if (!(flags & MOSNHOOK_PARKED))
        return receive_address(control, attempt);
    return flags & MOSNHOOK_WAITS ? receive_answer(control, attempt, 0) : 0;
}

/* ---- in a process without a descriptor for the control socket ---- */

struct handover {
    struct attempt *attempt;
    uint16_t flags;
    int result;
};

static void hand_over_here(void *argument)
{
    struct handover *handover = argument;
    int control = sys_socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (control < 0) {
        handover->result = control == -EMFILE ? EMFILE : OUTCOME_AWAY;
        return;
    }
    handover->result = connect_control(control, handover->attempt);
    if (handover->result == 0)
        handover->result = hand_over(control, handover->attempt, handover->flags);
    sys_close(control);
}

/* Nobody waits there: no signal could interrupt it. */
static int hand_over_apart(struct attempt *attempt, uint16_t flags)
{
    struct handover handover = {.attempt = attempt, .flags = flags, .result = EMFILE};
    bool waits = attempt->waits;

    if (!attempt->give_up)
        attempt->give_up = wait_full_deadline(attempt);
    attempt->waits = false;
    apart(attempt->fd, hand_over_here, &handover);
    attempt->waits = waits;
    return handover.result;
}

/* ---- the two kinds of sockets; `control` is -1 where there is no descriptor for one ---- */

/* The sidecar has connected the socket, or is about to. A second connect() completes the first one
 * for the kernel, so that a third says EISCONN as it should; and it reports a failure that the
 * sidecar does not know of. */
static int finish(struct attempt *attempt, const struct mosnhook_address *via)
{
    int result = socket_settle(attempt, socket_connect_now(attempt, via), via);

    if (result == EALREADY) /* SO_SNDTIMEO is over */
        return EINPROGRESS;
    return result == EISCONN ? 0 : result;
}

/* Connects a socket that cannot be parked to where the sidecar says. */
static int connect_unparked(struct attempt *attempt, int control)
{
    int result;

    if (control < 0)
        result = hand_over_apart(attempt, 0);
    else if ((result = connect_control(control, attempt)) == 0)
        result = hand_over(control, attempt, attempt->waits ? MOSNHOOK_WAITS : 0);
    if (result == EINPROGRESS) /* SO_SNDTIMEO ended the wait; nothing is in progress */
        return ETIMEDOUT;
    if (result != OUTCOME_CONNECT)
        return result == 0 ? ECONNREFUSED : result;
    memo_write(attempt->fd, MOSNHOOK_MEMO_RELAYED, &attempt->destination);
    result = socket_connect_now(attempt, &attempt->endpoint);
    if (result != EINPROGRESS && result != 0)
        return result;
    return attempt->waits ? finish(attempt, &attempt->endpoint) : EINPROGRESS;
}

/* `connected`: the control socket is connected; `waits`: the caller still waits. */
static int connect_parked(struct attempt *attempt, int control, bool connected, bool waits)
{
    struct mosnhook_address via;
    int result = park(attempt, &via);

    if (result != EINPROGRESS)
        return result < 0 ? result : socket_settle(attempt, result, &via);
    memo_write(attempt->fd, MOSNHOOK_MEMO_RELAYED, &attempt->destination);
    /* Connect last: this wakes a worker, which should find the request waiting. */
    if (control < 0)
        result = hand_over_apart(attempt, MOSNHOOK_PARKED);
    else if ((result = connected ? 0 : connect_control(control, attempt)) == 0)
        result = hand_over(control, attempt, MOSNHOOK_PARKED | (waits ? MOSNHOOK_WAITS : 0));
    if (result == 0)
        result = waits ? finish(attempt, &via) : EINPROGRESS;
    /* Timed out or interrupted: it goes on without the caller, as any connect() does. */
    if (result != 0 && result != EINPROGRESS && result != EINTR)
        socket_disconnect(attempt);
    return result;
}

static int connect_asked(struct attempt *attempt, int control)
{
    int unasked = ask(control, attempt), result;

    if (unasked != 0 && unasked != EINPROGRESS && unasked != EINTR)
        return unasked;
    result = connect_parked(attempt, control, true, attempt->waits && unasked == 0);
    return result == EINPROGRESS && unasked ? unasked : result;
}

int transport_unix(struct attempt *attempt)
{
    int control = open_control(attempt), result;

    if (control == -ENFILE)
        return OUTCOME_AWAY;
    if (control < 0 && control != -EMFILE) /* a sandbox that allows no such socket */
        return OUTCOME_OTHER_TRANSPORT;
    if (control < 0)
        control = -1;
    if (attempt->multipath)
        result = connect_unparked(attempt, control);
    else if (attempt->view.asks && control >= 0)
        result = connect_asked(attempt, control);
    else
        result = connect_parked(attempt, control, false, attempt->waits);
    if (control >= 0)
        sys_close(control);
    return result;
}
