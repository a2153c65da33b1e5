/* Steps on sockets, mostly the application's own. Only the kernel's socket holds the state of a
 * connect, so whatever the application does later behaves as without the hook. */
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>

#include "mosnhook.h"
#include "sys.h"

enum { FIRST_FREE_FD = 3 }; /* the program may have closed its stdio */

int socket_open(int family, int type, int protocol)
{
    int fd = sys_socket(family, type | SOCK_CLOEXEC, protocol), higher;

    if (fd < 0 || fd >= FIRST_FREE_FD)
        return fd;
    higher = sys_fcntl(fd, F_DUPFD_CLOEXEC, FIRST_FREE_FD);
    sys_close(fd);
    return higher;
}

static int real_connect(int fd, const void *address, socklen_t length)
{
    return libc()->connect(fd, address, length) == 0 ? 0 : get_errno();
}

/* Makes a blocking socket non-blocking for this one call. No handler may run meanwhile: it could
 * leave by longjmp, or use the socket. Synchronous signals are not held back: the kernel kills a
 * process that gets one while it blocks it, and seccomp's SIGSYS handlers rely on them. */
int socket_connect_now(struct attempt *attempt, const struct mosnhook_address *to)
{
    struct sockaddr_storage address;
    socklen_t length = address_to_sockaddr(to, attempt->family, &address);
    uint64_t all = ~SYNCHRONOUS_SIGNALS, before = 0;
    int flags, result;

    if (length == 0)
        return EAFNOSUPPORT;
    if (!attempt->blocking)
        return real_connect(attempt->fd, &address, length);
    sys_sigprocmask(SIG_SETMASK, &all, &before);
    flags = sys_fcntl(attempt->fd, F_GETFL, 0);
    if (flags >= 0 && sys_fcntl(attempt->fd, F_SETFL, flags | O_NONBLOCK) == 0) {
        result = real_connect(attempt->fd, &address, length);
        sys_fcntl(attempt->fd, F_SETFL, flags);
    } else {
        result = EBADF;
    }
    sys_sigprocmask(SIG_SETMASK, &before, NULL);
    return result;
}

bool socket_peer(int fd, int family, struct mosnhook_address *peer)
{
    struct sockaddr_storage address;
    /* The option wants exactly the address's length. */
    socklen_t length =
        family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);

    return sys_getsockopt(fd, SOL_SOCKET, SO_PEERNAME, &address, &length) == 0 &&
           address_from_sockaddr((struct sockaddr *)&address, length, peer);
}

int socket_take_error(int fd)
{
    int error = 0;
    socklen_t length = sizeof error;

    return sys_getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0 ? error : 0;
}

void socket_disconnect(struct attempt *attempt)
{
    static const struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
    int on = 1;

    real_connect(attempt->fd, &nowhere, sizeof nowhere);
    /* Leaving SYN_SENT leaves an ECONNRESET behind, which would be found instead of the result. */
    socket_take_error(attempt->fd);
    if (attempt->v6_only)
        sys_setsockopt(attempt->fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    memo_forget(attempt->fd);
}

int socket_settle(struct attempt *attempt, int result, const struct mosnhook_address *via)
{
    while (result == EALREADY && attempt->waits) {
        result = wait_ready(attempt, attempt->fd, POLLOUT, -1);
        if (result == OUTCOME_AWAY)
            socket_disconnect(attempt);
        if (result ==
            EINPROGRESS) /* the time is over: a second connect says so in the kernel, too */
            return EALREADY;
        if (result != 0)
            return result;
        result = socket_connect_now(attempt, via);
    }
    if (result != 0 && result != EISCONN && result != EALREADY) {
        result = memo_true_error(attempt->fd, result);
        memo_forget(attempt->fd);
    }
    return result;
}

/* Prefers the destination's IP version: the socket may be bound to a source of it. An AF_INET6
 * socket can use the other one, too. */
size_t socket_order(const struct attempt *attempt, const struct mosnhook_address *addresses,
                    size_t count, uint8_t order[MOSNHOOK_MAX_LISTENERS])
{
    bool ipv4 = address_is_ipv4(&attempt->destination);
    uint64_t first = (uint64_t)now_ns() / 1024; /* as good as any */
    size_t found = 0;

    for (int pass = 0; pass < (attempt->family == AF_INET6 ? 2 : 1); pass++)
        for (size_t i = 0; i < count; i++) {
            uint8_t at = (uint8_t)((first + i) % count);

            if (address_is_ipv4(&addresses[at]) == (pass == 0 ? ipv4 : !ipv4))
                order[found++] = at;
        }
    return found;
}
