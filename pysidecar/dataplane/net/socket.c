#include "net/socket.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

enum {
    KEEPALIVE_IDLE_S = 60,
    KEEPALIVE_INTERVAL_S = 15,
    KEEPALIVE_PROBES = 4,

    /* Bytes that a socket of ours holds unsent, towards this host. With 512 KiB a receiver that
     * never reads was felt up to seven times as late as natively; bulk is no faster with it. */
    UNSENT_ROOM = 128 * 1024,
};

int socket_connect(int fd, const struct mosnhook_address *to)
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

int socket_take_error(int fd)
{
    int error = 0;
    socklen_t length = sizeof error;

    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0 ? errno : error;
}

int socket_tune(int fd)
{
    static const struct {
        int level, name, value;
    } options[] = {
        {IPPROTO_TCP, TCP_NODELAY, 1},
        {SOL_SOCKET, SO_OOBINLINE, 1}, /* urgent data keeps its place, see l4/flow.c */
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

void socket_tune_for_this_host(int fd)
{
    static const char reno[] = "reno";

    (void)setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, reno, sizeof reno - 1);
}

void socket_tune_towards_this_host(int fd)
{
    static const int unsent = UNSENT_ROOM;

    socket_tune_for_this_host(fd);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent);
}

void socket_set_cork(int fd, bool on)
{
    int value = on;

    setsockopt(fd, IPPROTO_TCP, TCP_CORK, &value, sizeof value);
}

int socket_set_mark(int fd, uint32_t mark)
{
    return mark == 0 || setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof mark) == 0 ? 0 : -errno;
}

int socket_bind_source(int fd, const struct mosnhook_address *chosen)
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
