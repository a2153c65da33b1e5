#include "intercept/park.h"

#include <errno.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/owner.h"
#include "base/sockaddr.h"
#include "net/socket.h"

enum {
    COMPLETE_MS = 2000, /* plenty: a simultaneous open on loopback takes microseconds */
    WITHHOLD_ACK_S = 1, /* any number will do, see open_resetting */
};

#ifndef TCP_FASTOPEN_KEY
#define TCP_FASTOPEN_KEY 33
#endif

static bool attach_filter(int fd, struct sock_filter *filter, unsigned short count)
{
    struct sock_fprog program = {count, filter};

    return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0;
}

static bool drop_all(int fd)
{
    static struct sock_filter drop = BPF_STMT(BPF_RET | BPF_K, 0);

    return attach_filter(fd, &drop, 1);
}

/* Other segments belong to a connection that we have reset, which its other end has not learned:
 * let the kernel reset it again. */
static bool drop_syns(int fd)
{
    static struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 13), /* the flags of the TCP header */
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, TH_SYN, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, 0),
        BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
    };

    return attach_filter(fd, filter, sizeof filter / sizeof *filter);
}

/* Without the privilege for a filter: a connection that is never accepted fills the accept queue,
 * and a listener with a full queue drops SYNs, too. (It counts them as ListenOverflows, which a
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

static void park_close(struct park *park)
{
    close_fd(&park->listener);
    close_fd(&park->filler);
}

/* Opens the park on park->address, whose port is ignored. 0 or -errno. */
static int park_open(struct park *park)
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
    filtered = drop_syns(park->listener);
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

int parks_add(struct parks *parks, struct mosnhook_address *address)
{
    struct park *park = &parks->each[parks->count];
    int result;

    if (parks->count == MOSNHOOK_MAX_PARKS)
        return -ENOSPC;
    park->address = *address;
    result = park_open(park);
    if (result < 0)
        return result;
    *address = park->address;
    parks->count++;
    return 0;
}

void parks_close(struct parks *parks)
{
    for (size_t i = 0; i < parks->count; i++)
        park_close(&parks->each[i]);
}

static bool is_park(const struct parks *parks, const struct mosnhook_address *address)
{
    for (size_t i = 0; i < parks->count; i++)
        if (address_equal(&parks->each[i].address, address))
            return true;
    return false;
}

/* The TCP state; -1 if the kernel does not tell. */
static int read_state(int fd)
{
    struct tcp_info info;
    socklen_t length = sizeof info;

    memset(&info, 0, sizeof info);
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0 ? -1 : info.tcpi_state;
}

/* Asks the kernel, and never believes the request: S may have got another purpose while the request
 * waited. In SYN_SENT getpeername says ENOTCONN, but SO_PEERNAME answers; it wants exactly the
 * length of the family's address. */
static bool read_parked(const struct request *request, struct mosnhook_address *source,
                        struct mosnhook_address *park)
{
    struct sockaddr_storage name;
    socklen_t length = sizeof name;
    int fd = request->application;

    if (read_state(fd) != TCP_SYN_SENT)
        return false;
    memset(&name, 0, sizeof name);
    if (getsockname(fd, (struct sockaddr *)&name, &length) < 0)
        return false;
    address_from_socket(source, &name);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERNAME, &name, &length) < 0)
        return false;
    address_from_socket(park, &name);
    return is_park(request->worker->parks, park);
}

bool park_inspect(struct request *request)
{
    if (!read_parked(request, &request->source, &request->park))
        return false;
    if (request->session)
        request->session->origin.source = request->source;
    return true;
}

static bool is_still_parked(const struct request *request)
{
    struct mosnhook_address source, park;

    return read_parked(request, &source, &park) && address_equal(&source, &request->source) &&
           address_equal(&park, &request->park);
}

/* Opens a socket that can connect to a parked one. Its fd or -errno. */
static int open_socket(const struct mosnhook_address *park)
{
    struct sockaddr_storage name;
    socklen_t length = address_to_socket(park, &name);
    int one = 1, result = 0;
    int fd = socket(name.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);

    if (fd < 0)
        return -errno;
    socket_tune(fd);
    socket_tune_towards_this_host(fd);
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) < 0 ||
        bind(fd, (struct sockaddr *)&name, length) < 0) {
        result = -errno;
        close(fd);
    }
    return result < 0 ? result : fd;
}

/* Opens a socket that connects to a parked one. Its fd or -errno; `*connected`: whether it is
 * connected already. */
static int open_crossing(const struct mosnhook_address *park, const struct mosnhook_address *source,
                         bool *connected)
{
    int fd = open_socket(park), result = fd < 0 ? fd : socket_connect(fd, source);

    *connected = result == 0;
    if (result == 0 || result == -EINPROGRESS)
        return fd;
    if (fd >= 0)
        close(fd);
    return result;
}

/* Connects a second time, with another initial sequence number, which S's answer does not fit: for
 * that the kernel resets S. */
static int connect_anew(int fd, const struct mosnhook_address *source)
{
    static const struct sockaddr unconnected = {.sa_family = AF_UNSPEC};
    static const int unused;

    if (connect(fd, &unconnected, sizeof unconnected) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &unused, sizeof unused) < 0)
        return -errno;
    return socket_connect(fd, source);
}

/* Opens a socket that resets a parked one. Its fd or -errno. However long we are kept from our next
 * step, S is never established: the filter drops S's answer to the first SYN, so nothing
 * acknowledges it.
 *
 * Without the privilege for a filter, the kernel acknowledges the answer late (TCP_DEFER_ACCEPT of
 * a client: at most 200 ms), and resets S when we close the socket. */
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
        result = socket_connect(fd, source);
    if (result == -EINPROGRESS && filtered)
        result = connect_anew(fd, source);
    if (result == 0 || result == -EINPROGRESS)
        return fd;
    close(fd);
    return result;
}

/* ---- completing ---- */

static void completing_changed(struct channel *channel, uint32_t events)
{
    struct session *session = OWNER(channel, struct session, downstream);

    if (events & EPOLLERR)
        session_close(session, DP_END_DOWNSTREAM_GONE, ECONNRESET);
    else if (events & EPOLLOUT)
        control_completed(session);
}

void park_complete(struct session *session, struct request *request)
{
    struct loop *loop = &session->worker->loop;
    struct channel *downstream = &session->downstream;
    bool connected = true;
    int fd;

    if (!is_still_parked(request)) {
        session_close(session, DP_END_DOWNSTREAM_GONE, 0);
        return;
    }
    socket_tune_for_this_host(request->application);
    fd = open_crossing(&request->park, &request->source, &connected);
    if (fd >= 0) {
        downstream->watch.fd = fd;
        downstream->changed = completing_changed;
        session_enter(session, SESSION_COMPLETING);
        if (!connected)
            loop_set_timer(loop, &session->timer, COMPLETE_MS, session_completing_expired);
        if (channel_watch(loop, downstream) < 0)
            fd = -ENOMEM;
    }
    if (fd < 0)
        session_refuse(session, DP_END_NO_RESOURCES, -fd);
    else if (connected)
        control_completed(session);
}

/* ---- failing ---- */

static void note_error(const struct request *request, int error,
                       const struct mosnhook_address *destination)
{
    struct mosnhook_memo memo = {
        .magic = MOSNHOOK_MEMO_MAGIC,
        .kind = MOSNHOOK_MEMO_RELAYED,
        .error = (uint16_t)error,
    };

    if (!destination || address_is_zero(destination))
        return;
    memo.destination = *destination;
    (void)setsockopt(request->application, IPPROTO_TCP, TCP_FASTOPEN_KEY, &memo, sizeof memo);
}

static void failing_changed(struct channel *channel, uint32_t events)
{
    struct session *session = OWNER(channel, struct session, downstream);

    (void)events;
    session_close(session, session->end, session->error);
}

static void failing_expired(struct timer *timer)
{
    struct session *session = OWNER(timer, struct session, timer);

    trace(session->worker, session->id, expired, DP_TIMER_FAIL, 0);
    session_close(session, session->end, session->error);
}

/* Writes the error first: the application may look as soon as its socket fails. Then S comes to
 * SYN_RECV, where it is not writable yet, and ends there by a reset, as a refused native connect
 * does. */
bool park_fail(struct session *session, struct request *request, int error)
{
    struct loop *loop = &session->worker->loop;
    struct channel *downstream = &session->downstream;
    int fd;

    if (!request->parked || !is_still_parked(request))
        return false;
    note_error(request, error, &session->origin.original_destination);
    if (channel_is_open(downstream)) /* it could not be completed either */
        return false;
    fd = open_resetting(&request->park, &request->source);
    if (fd < 0)
        return false;
    downstream->watch.fd = fd;
    downstream->changed = failing_changed;
    /* S is mostly reset by now, unless a packet waits for a busy processor. When it is, our
     * socket's connect is refused, too. */
    if (read_state(request->application) == TCP_CLOSE ||
        loop_watch(loop, &downstream->watch, EPOLLOUT) < 0)
        return false;
    loop_set_timer(loop, &session->timer, COMPLETE_MS, failing_expired);
    return true;
}

void park_abandon(struct request *request, int error, const struct mosnhook_address *destination)
{
    struct sockaddr unconnected = {.sa_family = AF_UNSPEC};

    if (address_is_zero(&request->park) ? !park_inspect(request) : !is_still_parked(request))
        return;
    note_error(request, error, destination);
    /* This leaves ECONNRESET as well, but not the rest of what a failed connect leaves. */
    (void)connect(request->application, &unconnected, sizeof unconnected);
}

int park_works(const struct mosnhook_address *address)
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
