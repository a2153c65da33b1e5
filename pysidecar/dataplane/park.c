/* Sockets of applications that wait in SYN_SENT for their upstream (see contract.h).
 *
 * An application's socket S is connected to a park: a listener that drops every SYN. To complete S,
 * a socket bound to the same address connects to S: the crossed SYNs establish both (simultaneous
 * open, RFC 9293 figure 7). To fail S, the same is begun, but S is reset before it is established.
 * That leaves ECONNRESET for the application to find; the hook makes the true errno of it. */
#include <errno.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "internal.h"

enum {
    COMPLETE_MS = 2000, /* a simultaneous open on loopback takes microseconds */
    WITHHOLD_ACK_S = 1, /* any number will do */
};

#ifndef TCP_FASTOPEN_KEY
#define TCP_FASTOPEN_KEY 33
#endif

static bool drop_all(int fd)
{
    static struct sock_filter drop = BPF_STMT(BPF_RET | BPF_K, 0);
    static const struct sock_fprog program = {1, &drop};

    return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0;
}

/* Without the privilege for a filter: one connection that is never accepted fills the accept queue,
 * and a listener whose queue is full drops SYNs too. (It counts them as ListenOverflows, which a
 * filter does not.) */
static int fill_queue(struct park *park)
{
    struct sockaddr_storage name;
    socklen_t length = address_to_socket(&park->address, &name);

    park->filler = socket(name.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
    if (park->filler < 0 ||
        (connect(park->filler, (struct sockaddr *)&name, length) < 0 && errno != EINPROGRESS))
        return -errno;
    return 0;
}

int park_open(struct park *park)
{
    struct sockaddr_storage name;
    socklen_t length;
    int one = 1, result = 0;
    bool filtered;

    park->address.port = 0;
    park->filler = -1;
    length = address_to_socket(&park->address, &name);
    park->listener =
        socket(name.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
    if (park->listener < 0)
        return -errno;
    filtered = drop_all(park->listener);
    if (setsockopt(park->listener, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) < 0 ||
        bind(park->listener, (struct sockaddr *)&name, length) < 0 || listen(park->listener, 0) < 0)
        result = -errno;
    if (result == 0)
        result = address_of_local(park->listener, &park->address);
    if (result == 0 && !filtered)
        result = fill_queue(park);
    if (result < 0)
        park_close(park);
    return result;
}

void park_close(struct park *park)
{
    if (park->listener >= 0)
        close(park->listener);
    if (park->filler >= 0)
        close(park->filler);
}

static bool is_park(const struct dp *dp, const struct mosnhook_address *address)
{
    for (size_t i = 0; i < dp->park_count; i++)
        if (address_equal(&dp->parks[i].address, address))
            return true;
    return false;
}

/* One of enum tcp_state's; -1: the kernel does not tell. */
static int read_state(int fd)
{
    struct tcp_info info;
    socklen_t length = sizeof info;

    memset(&info, 0, sizeof info);
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0 ? -1 : info.tcpi_state;
}

/* The state is what the kernel says, never what the request claims: S may have been given another
 * purpose while the request waited. getpeername answers ENOTCONN in SYN_SENT, SO_PEERNAME does not;
 * it wants to be asked for exactly the bytes of the family's address. */
static bool read_parked(const struct dp *dp, int fd, struct mosnhook_address *source,
                        struct mosnhook_address *park)
{
    struct sockaddr_storage name;
    socklen_t length = sizeof name;

    if (read_state(fd) != TCP_SYN_SENT)
        return false;
    memset(&name, 0, sizeof name);
    if (getsockname(fd, (struct sockaddr *)&name, &length) < 0)
        return false;
    address_from_socket(source, &name);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERNAME, &name, &length) < 0)
        return false;
    address_from_socket(park, &name);
    return is_park(dp, park);
}

bool park_inspect(struct connection *connection)
{
    return read_parked(connection->worker->dp, connection->application, &connection->source,
                       &connection->park);
}

static bool is_still_parked(const struct connection *connection)
{
    struct mosnhook_address source, park;

    return read_parked(connection->worker->dp, connection->application, &source, &park) &&
           address_equal(&source, &connection->source) && address_equal(&park, &connection->park);
}

/* A socket that can connect to a parked one: its fd or -errno. */
static int open_socket(const struct mosnhook_address *park)
{
    struct sockaddr_storage name;
    socklen_t length = address_to_socket(park, &name);
    int one = 1, result = 0;
    int fd = socket(name.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);

    if (fd < 0)
        return -errno;
    tune_socket(fd);
    tune_towards_this_host(fd);
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) < 0 ||
        bind(fd, (struct sockaddr *)&name, length) < 0) {
        result = -errno;
        close(fd);
    }
    return result < 0 ? result : fd;
}

/* A socket that connects to a parked one. Its fd or -errno; `*connected`: whether it is already. */
static int open_crossing(const struct mosnhook_address *park, const struct mosnhook_address *source,
                         bool *connected)
{
    int fd = open_socket(park), result = fd < 0 ? fd : connect_socket(fd, source);

    *connected = result == 0;
    if (result == 0 || result == -EINPROGRESS)
        return fd;
    if (fd >= 0)
        close(fd);
    return result;
}

/* Connects a second time, with another initial sequence number: what S answers does not fit it. For
 * that the kernel resets S. */
static int connect_anew(int fd, const struct mosnhook_address *source)
{
    static const struct sockaddr unconnected = {.sa_family = AF_UNSPEC};
    static const int unused;

    if (connect(fd, &unconnected, sizeof unconnected) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &unused, sizeof unused) < 0)
        return -errno;
    return connect_socket(fd, source);
}

/* A socket that resets a parked one: its fd or -errno. However long we are kept from our next step,
 * S is never established: its answer to the first SYN is dropped, and so not acknowledged.
 *
 * Without the privilege for a filter it is acknowledged, but late, and S reset when the socket is
 * closed. (TCP_DEFER_ACCEPT of a client: no more than 200 ms late.) */
static int open_resetting(const struct mosnhook_address *park,
                          const struct mosnhook_address *source)
{
    int fd = open_socket(park), delay = WITHHOLD_ACK_S, result;
    bool filtered;

    if (fd < 0)
        return fd;
    filtered = drop_all(fd);
    if (setsockopt(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &delay, sizeof delay) < 0)
        result = -errno;
    else
        result = connect_socket(fd, source);
    if (result == -EINPROGRESS && filtered)
        result = connect_anew(fd, source);
    if (result == 0 || result == -EINPROGRESS)
        return fd;
    close(fd);
    return result;
}

void downstream_completed(struct connection *connection)
{
    struct mosnhook_answer answer = {
        .magic = MOSNHOOK_MAGIC,
        .version = MOSNHOOK_VERSION,
        .action = MOSNHOOK_RELAY,
    };

    connection->side[DOWNSTREAM].writable = true;
    timer_cancel(&connection->worker->loop.timers, &connection->timer);
    /* A caller that no longer waits finds its socket connected. */
    if (connection->waits)
        (void)send(connection->request.fd, &answer, sizeof answer, MSG_NOSIGNAL | MSG_DONTWAIT);
    foreign_close_request(connection);
    accelerate_prepare(connection);
    /* Our copy must go, or the application's close would not be seen. */
    foreign_close(connection, &connection->application);
    connection_release_fds(connection, FDS_PER_RELAY);
    if (connection->side[UPSTREAM].watch.fd >= 0)
        relay_start(connection);
    else
        upstream_start(connection);
}

void completing_expired(struct timer *timer)
{
    connection_refuse(OWNER(timer, struct connection, timer), DP_END_DOWNSTREAM_GONE, ETIMEDOUT);
}

static void completing_ready(struct watch *watch, uint32_t events)
{
    struct connection *connection = OWNER(watch, struct connection, side[DOWNSTREAM].watch);

    if (events & EPOLLERR) {
        connection_close(connection, DP_END_DOWNSTREAM_GONE, ECONNRESET);
        return;
    }
    if (!(events & EPOLLOUT))
        return;
    relay_note_events(connection, DOWNSTREAM, events);
    connection->side[DOWNSTREAM].readable = true;
    downstream_completed(connection);
}

void park_complete(struct connection *connection)
{
    struct worker *worker = connection->worker;
    struct watch *watch = &connection->side[DOWNSTREAM].watch;
    bool connected = true;
    int fd;

    if (!is_still_parked(connection)) {
        connection_close(connection, DP_END_DOWNSTREAM_GONE, 0);
        return;
    }
    tune_for_this_host(connection->application);
    fd = open_crossing(&connection->park, &connection->source, &connected);
    if (fd >= 0) {
        watch->fd = fd;
        connection_enter(connection, PHASE_COMPLETING);
        watch->ready = completing_ready;
        if (!connected)
            loop_set_timer(&worker->loop, &connection->timer, COMPLETE_MS, completing_expired);
        if (loop_watch(&worker->loop, watch, SIDE_EVENTS) < 0)
            fd = -ENOMEM;
    }
    if (fd < 0)
        connection_refuse(connection, DP_END_NO_RESOURCES, -fd);
    else if (connected)
        downstream_completed(connection);
}

static void note_error(const struct connection *connection, int error)
{
    struct mosnhook_memo memo = {
        .magic = MOSNHOOK_MEMO_MAGIC,
        .kind = MOSNHOOK_MEMO_RELAYED,
        .error = (uint16_t)error,
        .destination = connection->original_destination,
    };

    if (!address_is_zero(&memo.destination))
        (void)setsockopt(connection->application, IPPROTO_TCP, TCP_FASTOPEN_KEY, &memo,
                         sizeof memo);
}

static void failing_ready(struct watch *watch, uint32_t events)
{
    struct connection *connection = OWNER(watch, struct connection, side[DOWNSTREAM].watch);

    (void)events;
    connection_close(connection, connection->end, connection->error);
}

static void failing_expired(struct timer *timer)
{
    struct connection *connection = OWNER(timer, struct connection, timer);

    connection_close(connection, connection->end, connection->error);
}

/* The error first: the application may look as soon as its socket fails. Then S comes to SYN_RECV,
 * in which it is not writable yet, and ends there, by a reset, as a native connect ends that is
 * refused. */
bool park_fail(struct connection *connection, int error)
{
    struct worker *worker = connection->worker;
    struct watch *watch = &connection->side[DOWNSTREAM].watch;
    int fd;

    if (!connection->parked || !is_still_parked(connection))
        return false;
    note_error(connection, error);
    if (watch->fd >= 0) /* it could not be completed either */
        return false;
    fd = open_resetting(&connection->park, &connection->source);
    watch->fd = fd >= 0 ? fd : -1;
    /* Mostly it is over by now, unless a packet waits for a busy processor. Our socket is refused
     * when S has been reset. */
    if (fd < 0 || read_state(connection->application) == TCP_CLOSE)
        return false;
    watch->ready = failing_ready;
    if (loop_watch(&worker->loop, watch, EPOLLOUT) < 0)
        return false;
    loop_set_timer(&worker->loop, &connection->timer, COMPLETE_MS, failing_expired);
    return true;
}

void park_abandon(struct connection *connection, int error)
{
    struct sockaddr unconnected = {.sa_family = AF_UNSPEC};

    if (address_is_zero(&connection->park) ? !park_inspect(connection)
                                           : !is_still_parked(connection))
        return;
    note_error(connection, error);
    /* Leaves ECONNRESET as well, but not the rest of what a failed connect leaves. */
    (void)connect(connection->application, &unconnected, sizeof unconnected);
}

int dp_parking_works(const struct mosnhook_address *address)
{
    struct park park = {.address = *address};
    struct mosnhook_address source;
    struct sockaddr_storage name;
    struct pollfd waits[2];
    socklen_t length;
    bool connected;
    int parked, crossing = -1, result = park_open(&park);

    if (result < 0)
        return result;
    length = address_to_socket(&park.address, &name);
    parked = socket(name.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
    if (parked < 0) {
        result = -errno;
        park_close(&park);
        return result;
    }
    waits[0] = (struct pollfd){.fd = parked, .events = POLLOUT};
    if (connect(parked, (struct sockaddr *)&name, length) < 0 && errno == EINPROGRESS &&
        poll(&waits[0], 1, 0) == 0 && address_of_local(parked, &source) == 0)
        crossing = open_crossing(&park.address, &source, &connected);
    waits[1] = (struct pollfd){.fd = crossing, .events = POLLOUT};
    result = crossing >= 0 && poll(&waits[0], 1, COMPLETE_MS) == 1 &&
             poll(&waits[1], 1, COMPLETE_MS) == 1 && waits[0].revents == POLLOUT &&
             waits[1].revents == POLLOUT;
    if (crossing >= 0)
        close(crossing);
    close(parked);
    park_close(&park);
    return result;
}
