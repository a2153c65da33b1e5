/* Receiving what takes the short path through the kernel (see docs/architecture.md). Data that was
 * redirected to a socket is not in TCP's own queue, and the kernel does four things differently
 * with it, for which this file makes up:
 *
 *   - a recv() that waits may end with EAGAIN when it is woken up for something else: here it goes
 *     on waiting;
 *   - a reset may be told to nobody, if it comes in the middle of a send(): here the next receive
 *     tells it, where the kernel would say that the stream has ended;
 *   - MSG_WAITALL does not wait for all: here it is several calls without that flag;
 *   - splice() does not see it: here it is read, and written to the pipe.
 *
 * Only for TCP sockets, and only while the page says that the sidecar accelerates connections. */
#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/time.h>
#include <sys/uio.h>

#include "mosnhook.h"
#include "sys.h"

enum {
    STATE_CLOSED = 7,        /* TCP_CLOSE, which is in a header that linux/tcp.h does not go with */
    VECTOR_PART = 16,        /* iovec entries that are handed on at a time */
    SPLICE_PART = 16 * 1024, /* bytes that one splice() moves: on the stack */
    SPLICE_DO_NOT_WAIT = 2,  /* SPLICE_F_NONBLOCK, which only _GNU_SOURCE shows */
    PIPE_PAGE = 4096,        /* what a pipe that polls writable takes without waiting */
};

static bool may_be_accelerated(int fd)
{
    int protocol = 0;
    socklen_t length = sizeof protocol;

    return hook_active() && page_accelerates() &&
           sys_getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &length) == 0 &&
           protocol == IPPROTO_TCP;
}

/* Whether several receives have to do what MSG_WAITALL asks for. (With MSG_PEEK they could not.) */
static bool waits_for_all(int fd, int flags)
{
    return (flags & MSG_WAITALL) && !(flags & (MSG_DONTWAIT | MSG_PEEK | MSG_ERRQUEUE | MSG_OOB)) &&
           may_be_accelerated(fd);
}

/* Whether the connection ended without both ends having been said: our own, which the other side
 * acknowledges like a byte (so does it with the SYN), and the other side's. */
static bool was_reset(int fd)
{
    struct tcp_info info;
    socklen_t length = sizeof info;

    __builtin_memset(&info, 0, sizeof info);
    return sys_getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 &&
           info.tcpi_state == STATE_CLOSED &&
           info.tcpi_bytes_acked <= info.tcpi_bytes_sent - info.tcpi_bytes_retrans + 1;
}

/* What a receive says, or -1 with errno. */
static ssize_t tell_reset(int fd, ssize_t count, size_t wanted)
{
    if (count != 0 || wanted == 0 || !may_be_accelerated(fd) || !was_reset(fd))
        return count;
    set_errno(ECONNRESET);
    return -1;
}

/* Whether a receive failed that should have waited: waits, and says whether to try again. A timeout
 * (SO_RCVTIMEO) begins anew. */
static bool try_again(int fd, ssize_t count, int flags)
{
    struct timeval limit = {0, 0};
    socklen_t length = sizeof limit;
    struct pollfd data = {.fd = fd, .events = POLLIN};
    int ready;

    if (count >= 0 || get_errno() != EAGAIN || (flags & (MSG_DONTWAIT | MSG_ERRQUEUE)) ||
        !may_be_accelerated(fd) || (sys_fcntl(fd, F_GETFL, 0) & O_NONBLOCK))
        return false;
    sys_getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, &length);
    ready = libc()->poll(
        &data, 1,
        limit.tv_sec || limit.tv_usec ? (int)(limit.tv_sec * 1000 + limit.tv_usec / 1000) : -1);
    if (ready == 0)
        set_errno(EAGAIN);
    return ready > 0;
}

/* The part of a message that begins behind `skip` bytes, as far as it fits. Returns its size. */
static size_t part_of(const struct msghdr *message, size_t skip, struct iovec part[VECTOR_PART],
                      size_t *count)
{
    size_t size = 0;

    *count = 0;
    for (size_t i = 0; i < message->msg_iovlen && *count < VECTOR_PART; i++) {
        const struct iovec *whole = &message->msg_iov[i];

        if (skip >= whole->iov_len) {
            skip -= whole->iov_len;
            continue;
        }
        part[*count].iov_base = (char *)whole->iov_base + skip;
        part[*count].iov_len = whole->iov_len - skip;
        size += part[(*count)++].iov_len;
        skip = 0;
    }
    return size;
}

static ssize_t receive_all(int fd, struct msghdr *message, int flags)
{
    struct iovec part[VECTOR_PART];
    struct msghdr rest = *message;
    size_t done = 0, wanted;
    ssize_t count;

    for (;;) {
        wanted = part_of(message, done, part, &rest.msg_iovlen);
        rest.msg_iov = part;
        do
            count = libc()->recvmsg(fd, &rest, flags & ~MSG_WAITALL);
        while (try_again(fd, count, flags));
        if (done == 0) { /* the first one's tell what a caller looks at */
            message->msg_flags = rest.msg_flags;
            message->msg_controllen = rest.msg_controllen;
            message->msg_namelen = rest.msg_namelen;
            rest.msg_control = NULL;
            rest.msg_controllen = 0;
        }
        if (count <= 0)
            return done ? (ssize_t)done : tell_reset(fd, count, wanted);
        done += (size_t)count;
        if ((size_t)count == wanted && part_of(message, done, part, &rest.msg_iovlen) == 0)
            return (ssize_t)done;
    }
}

static ssize_t receive_into(int fd, void *bytes, size_t size, int flags)
{
    struct iovec vector = {bytes, size};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};

    return receive_all(fd, &message, flags);
}

MOSNHOOK_EXPORT ssize_t recv(int fd, void *bytes, size_t size, int flags)
{
    ssize_t count;

    if (waits_for_all(fd, flags))
        return receive_into(fd, bytes, size, flags);
    do
        count = libc()->recv(fd, bytes, size, flags);
    while (try_again(fd, count, flags));
    return tell_reset(fd, count, size);
}

/* TCP tells no address: what the caller passed for it stays as the kernel leaves it. */
MOSNHOOK_EXPORT ssize_t recvfrom(int fd, void *bytes, size_t size, int flags,
                                 struct sockaddr *address, socklen_t *length)
{
    ssize_t count;

    if (waits_for_all(fd, flags)) {
        if (address && length)
            *length = 0;
        return receive_into(fd, bytes, size, flags);
    }
    do
        count = libc()->recvfrom(fd, bytes, size, flags, address, length);
    while (try_again(fd, count, flags));
    return tell_reset(fd, count, size);
}

MOSNHOOK_EXPORT ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    ssize_t count;

    if (waits_for_all(fd, flags))
        return receive_all(fd, message, flags);
    do
        count = libc()->recvmsg(fd, message, flags);
    while (try_again(fd, count, flags));
    return tell_reset(fd, count, message->msg_iovlen);
}

MOSNHOOK_EXPORT ssize_t read(int fd, void *bytes, size_t size)
{
    ssize_t count;

    do
        count = libc()->read(fd, bytes, size);
    while (try_again(fd, count, 0));
    return tell_reset(fd, count, size);
}

MOSNHOOK_EXPORT ssize_t readv(int fd, const struct iovec *vector, int entries)
{
    ssize_t count;

    do
        count = libc()->readv(fd, vector, entries);
    while (try_again(fd, count, 0));
    return tell_reset(fd, count, 1);
}

/* What glibc makes of these functions in programs that were built with _FORTIFY_SOURCE. Too small a
 * buffer is for glibc to complain about. */
MOSNHOOK_EXPORT ssize_t __recv_chk(int fd, void *bytes, size_t size, size_t room, int flags)
{
    return size <= room ? recv(fd, bytes, size, flags)
                        : libc()->recv_chk(fd, bytes, size, room, flags);
}

MOSNHOOK_EXPORT ssize_t __recvfrom_chk(int fd, void *bytes, size_t size, size_t room, int flags,
                                       struct sockaddr *address, socklen_t *length)
{
    return size <= room ? recvfrom(fd, bytes, size, flags, address, length)
                        : libc()->recvfrom_chk(fd, bytes, size, room, flags, address, length);
}

MOSNHOOK_EXPORT ssize_t __read_chk(int fd, void *bytes, size_t size, size_t room)
{
    return size <= room ? read(fd, bytes, size) : libc()->read_chk(fd, bytes, size, room);
}

/* Bytes are taken from the socket when the pipe has them: none are lost if it is full. */
static ssize_t copy_to_pipe(int fd, int pipe, size_t size, unsigned flags)
{
    char bytes[SPLICE_PART];
    ssize_t count, written;

    /* As the kernel's: SPLICE_F_NONBLOCK is about the pipe, not the socket. */
    count = libc()->recv(fd, bytes, size < sizeof bytes ? size : sizeof bytes, MSG_PEEK);
    if (count <= 0)
        return count;
    if (flags & SPLICE_DO_NOT_WAIT && !(sys_fcntl(pipe, F_GETFL, 0) & O_NONBLOCK)) {
        struct pollfd room = {.fd = pipe, .events = POLLOUT};

        if (sys_poll(&room, 1, 0) == 0) {
            set_errno(EAGAIN);
            return -1;
        }
        if (count > PIPE_PAGE)
            count = PIPE_PAGE;
    }
    written = sys_write(pipe, bytes, (size_t)count);
    if (written < 0) {
        set_errno((int)-written);
        return -1;
    }
    return libc()->recv(fd, bytes, (size_t)written, MSG_DONTWAIT);
}

MOSNHOOK_EXPORT ssize_t splice(int in, int64_t *in_offset, int out, int64_t *out_offset,
                               size_t size, unsigned flags)
{
    if (!in_offset && !out_offset && size > 0 && may_be_accelerated(in))
        return copy_to_pipe(in, out, size, flags);
    return libc()->splice(in, in_offset, out, out_offset, size, flags);
}
