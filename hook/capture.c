/* Decides whether a connect() is captured, and carries it out if so. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/time.h>

#include "mosnhook.h"
#include "sys.h"

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

enum {
    PAGES_MAX = 5, /* that one connect tries if they keep changing */
};

static int read_option(int fd, int level, int name)
{
    int value = 0;
    socklen_t length = sizeof value;
    int result = sys_getsockopt(fd, level, name, &value, &length);

    return result < 0 ? result : value;
}

/* When SO_SNDTIMEO ends a connect() that begins now; 0 for never. */
static int64_t send_deadline(int fd)
{
    struct timeval timeout = {0, 0};
    socklen_t length = sizeof timeout;

    if (sys_getsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, &length) < 0 ||
        (timeout.tv_sec == 0 && timeout.tv_usec == 0))
        return 0;
    return now_ns() + (int64_t)timeout.tv_sec * 1000 * MS + (int64_t)timeout.tv_usec * 1000;
}

/* TCP_FASTOPEN_CONNECT would delay the connect to the sidecar until the first data. */
static void set_fast_open(const struct attempt *attempt, int on)
{
    sys_setsockopt(attempt->fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &on, sizeof on);
}

/* One connect to the sidecar that the page names. */
static int through_sidecar(struct attempt *attempt)
{
    const struct page_view *view = &attempt->view;
    int result = OUTCOME_OTHER_TRANSPORT;

    attempt->give_up = 0;
    if (!page_serving(view) || !wait_for_room(attempt))
        return OUTCOME_AWAY;
    /* MPTCP has no simultaneous open, so it is not parked; see contract.h. */
    if (view->transport == MOSNHOOK_TRANSPORT_UNIX && view->control_path[0] &&
        (attempt->multipath || view->park_count > 0))
        result = transport_unix(attempt);
    if (result == OUTCOME_OTHER_TRANSPORT)
        result = transport_header(attempt);
    return result;
}

/* Tries; while the sidecar is away, does what the page or the environment says. */
static int until_decided(struct attempt *attempt)
{
    struct page_view *view = &attempt->view;
    int64_t began = now_ns();
    int pages = 1;

    for (;;) {
        uint32_t tried = view->generation;
        int result = through_sidecar(attempt);

        if (result != OUTCOME_AWAY)
            return result;
        /* Another sidecar may have taken its place, or this one may have changed the page. */
        page_open();
        page_look(&attempt->destination, view);
        if (view->excluded)
            return OUTCOME_DIRECT;
        if (view->generation != tried && pages++ < PAGES_MAX)
            continue;
        if (view->when_away == MOSNHOOK_AWAY_DIRECT)
            return OUTCOME_DIRECT;
        if (view->when_away != MOSNHOOK_AWAY_WAIT ||
            now_ns() - began >= (int64_t)view->wait_ms * MS)
            return ECONNREFUSED;
        result = wait_pause(attempt, AWAY_CHECK_MS);
        if (result == EINPROGRESS) /* SO_SNDTIMEO ended the wait, but nothing is in progress */
            return ETIMEDOUT;
        if (result != 0)
            return result;
    }
}

/* A socket that is connected, connecting, or failed to connect: while the kernel has anything of
 * that, it answers a connect() by it, whatever the address. OUTCOME_NOT_OURS if there is nothing,
 * and this is a new connect. */
static int ask_kernel(struct attempt *attempt)
{
    struct mosnhook_address via;
    int result;

    if (!socket_peer(attempt->fd, attempt->family, &via))
        return OUTCOME_NOT_OURS;
    if (!page_lists(&via)) { /* it connected itself */
        attempt->endpoint = via;
        return OUTCOME_DIRECT;
    }
    result = socket_connect_now(attempt, &via);
    if (result == EINPROGRESS) { /* another thread, or the sidecar, has just disconnected it */
        socket_disconnect(attempt);
        return OUTCOME_NOT_OURS;
    }
    return socket_settle(attempt, result, &via);
}

int capture(int fd, struct target *target, int flags)
{
    const struct sockaddr *address = target->address;
    socklen_t length = target->length;
    struct attempt attempt;
    int protocol, status, result, saved_errno;
    bool repeated;

    /* The kernel refuses what is no address. */
    if (!address || length < sizeof address->sa_family ||
        length > sizeof(struct sockaddr_storage) || !address_readable(fd, address, length))
        return OUTCOME_NOT_OURS;
    if (address->sa_family == AF_UNSPEC && page_known())
        memo_forget(fd); /* the application disconnects it */
    if (!address_from_sockaddr(address, length, &attempt.destination) ||
        address_is_for_many(&attempt.destination))
        return OUTCOME_NOT_OURS;
    page_look(&attempt.destination, &attempt.view);
    if (attempt.view.excluded) {
        log_decision(&attempt.destination, "excluded", OUTCOME_NOT_OURS);
        return OUTCOME_NOT_OURS;
    }
    protocol = read_option(fd, SOL_SOCKET, SO_PROTOCOL);
    if (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP)
        return OUTCOME_NOT_OURS;
    /* IPv4 from a socket that is for IPv6 only: the kernel says ENETUNREACH. */
    if (address->sa_family == AF_INET6 && address_is_ipv4(&attempt.destination) &&
        read_option(fd, IPPROTO_IPV6, IPV6_V6ONLY) > 0)
        return OUTCOME_NOT_OURS;
    status = sys_fcntl(fd, F_GETFL, 0);
    if (status < 0)
        return OUTCOME_NOT_OURS;

    saved_errno = get_errno();
    attempt.fd = fd;
    attempt.family = address->sa_family;
    attempt.blocking = !(status & O_NONBLOCK);
    attempt.waits = attempt.blocking && !(flags & CAPTURE_CONNECT_DONT_WAIT);
    attempt.multipath = protocol == IPPROTO_MPTCP;
    attempt.deadline = attempt.waits ? send_deadline(fd) : 0;
    attempt.fast_open = read_option(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT) > 0;

    attempt.v6_only = false;
    attempt.endpoint.port = 0;

    cancel_disable(&attempt);
    if (attempt.fast_open)
        set_fast_open(&attempt, 0);
    result = ask_kernel(&attempt);
    repeated = result != OUTCOME_NOT_OURS && result != OUTCOME_AWAY;
    if (!repeated)
        result = until_decided(&attempt);
    /* The kernel refuses it once there is a connection. */
    if (attempt.fast_open && result != 0)
        set_fast_open(&attempt, 1);
    cancel_restore(&attempt);

    log_decision(&attempt.destination, repeated ? "repeated" : "captured", result);
    set_errno(saved_errno);
    if (result != OUTCOME_DIRECT)
        return result;
    if (attempt.endpoint.port != 0) {
        target->address = (struct sockaddr *)&target->replacement;
        target->length =
            address_to_sockaddr(&attempt.endpoint, attempt.family, &target->replacement);
    }
    return OUTCOME_NOT_OURS;
}
