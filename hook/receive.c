/* Receiving what was redirected to the application's socket (see docs/acceleration.md), which
 * happens only where `acceleration.receive` asks for it. Such data is not in TCP's own queue, and
 * the kernel does some things differently with it, for which this file makes up:
 *
 *   - a recv() that waits may end with EAGAIN when it is woken up for something else: here it goes
 *     on waiting, in all as long as SO_RCVTIMEO says;
 *   - a reset may be told to nobody, if it comes in the middle of a send(): here the next receive
 *     tells it, where the kernel would say that the stream has ended;
 *   - MSG_WAITALL does not wait for all: here it is several calls without that flag;
 *   - splice() does not see it: here it is read, and written to the pipe;
 *   - FIONREAD sees nothing else, not what came by TCP: here that is counted.
 *
 * While the page says that nothing is redirected to applications, each function is the real one:
 * there is no other system call. Else it is asked whether the socket is one that was captured. */
#include <errno.h>
#include <limits.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/time.h>
#include <sys/uio.h>

#include "mosnhook.h"
#include "sys.h"

enum {
    STATE_CLOSED = 7,        /* TCP_CLOSE, which is in a header that linux/tcp.h does not go with */
    VECTOR_PART = 16,        /* iovec entries that are handed on at a time */
    SPLICE_PART = 16 * 1024, /* bytes that one splice() moves: on the stack */
    SPLICE_DO_NOT_WAIT = 2,  /* SPLICE_F_NONBLOCK, which only _GNU_SOURCE shows, as the next two */
    SPLICE_FLAGS = 15,       /* all that there are */
    GET_PIPE_SIZE = 1032,    /* F_GETPIPE_SZ */
    PIPE_PAGE = 4096,        /* what a pipe that polls writable takes without waiting */
};

/* Whether data may be redirected to the socket. */
static bool is_accelerated(int fd)
{
    struct mosnhook_memo memo;

    return page_accelerates() && hook_active() && memo_read(fd, &memo) &&
           memo.kind == MOSNHOOK_MEMO_RELAYED && memo.error == 0;
}

static bool waits(int fd, int flags)
{
    return !(flags & (MSG_DONTWAIT | MSG_ERRQUEUE)) && !(sys_fcntl(fd, F_GETFL, 0) & O_NONBLOCK);
}

/* When a receive begins; needed only where it may have to be continued. */
static int64_t begin(void)
{
    return page_accelerates() ? now_ns() : 0;
}

/* Waits for something to receive: since `began`, as long as SO_RCVTIMEO says in all. False with
 * errno. */
static bool wait_for_data(int fd, int64_t began)
{
    struct timeval limit = {0, 0};
    socklen_t length = sizeof limit;
    struct pollfd data = {.fd = fd, .events = POLLIN};
    int64_t left_ms = -1;
    int ready;

    sys_getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, &length);
    do {
        if (limit.tv_sec || limit.tv_usec) {
            int64_t end = began + limit.tv_sec * 1000 * MS + limit.tv_usec * 1000;

            left_ms = (end - now_ns() + MS - 1) / MS;
            if (left_ms <= 0) {
                set_errno(EAGAIN);
                return false;
            }
        }
        ready = libc()->poll(&data, 1, left_ms < INT_MAX ? (int)left_ms : INT_MAX);
    } while (ready == 0 || (ready < 0 && get_errno() == EINTR && left_ms < 0 && wait_restarts()));
    return ready > 0;
}

/* ---- a reset that nobody was told of ---- */

/* Whether the other side's end has come, which the kernel then reports before anything else. A
 * request to map data finds it (EIO), and maps nothing. */
static bool has_peer_ended(int fd)
{
    struct tcp_zerocopy_receive nothing;
    socklen_t length = sizeof nothing;

    __builtin_memset(&nothing, 0, sizeof nothing);
    return sys_getsockopt(fd, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, &nothing, &length) == -EIO;
}

static bool was_reset(int fd)
{
    struct tcp_info info;
    socklen_t length = sizeof info;

    __builtin_memset(&info, 0, sizeof info);
    return sys_getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 &&
           info.tcpi_state == STATE_CLOSED && !has_peer_ended(fd);
}

/* What a receive returns, or -1 with errno. Reports a reset once. */
static ssize_t tell_reset(int fd, ssize_t count)
{
    if (count < 0 && get_errno() == ECONNRESET && is_accelerated(fd))
        memo_forget(fd);
    if (count != 0 || !is_accelerated(fd) || !was_reset(fd))
        return count;
    memo_forget(fd);
    set_errno(ECONNRESET);
    return -1;
}

/* ---- waiting for all ---- */

/* Whether it takes several receives to do what MSG_WAITALL asks. (With MSG_PEEK they could not.) */
static bool waits_for_all(int fd, int flags)
{
    return (flags & MSG_WAITALL) && !(flags & (MSG_PEEK | MSG_ERRQUEUE | MSG_OOB)) &&
           is_accelerated(fd) && waits(fd, flags);
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

/* Receives what is left of the message after `done` bytes of it. */
static ssize_t receive_rest(int fd, const struct msghdr *message, int flags, int64_t began,
                            ssize_t done)
{
    struct iovec part[VECTOR_PART];
    struct msghdr rest = {.msg_iov = part};
    ssize_t count;

    while (part_of(message, (size_t)done, part, &rest.msg_iovlen) > 0) {
        do
            count = libc()->recvmsg(fd, &rest, flags | MSG_DONTWAIT);
        while (count < 0 && get_errno() == EAGAIN && wait_for_data(fd, began));
        if (count <= 0)
            break;
        done += count;
    }
    return done;
}

/* ---- the functions ---- */

static bool wants_none(const struct msghdr *message)
{
    struct iovec part[VECTOR_PART];
    size_t entries;

    return part_of(message, 0, part, &entries) == 0;
}

static ssize_t receive_later(int fd, struct msghdr *message, int flags, int64_t began)
{
    ssize_t count;

    do {
        if (!wait_for_data(fd, began))
            return -1;
        count = libc()->recvmsg(fd, message, flags | MSG_DONTWAIT);
    } while (count < 0 && get_errno() == EAGAIN);
    return count;
}

/* What to tell the application after a receive of `count`. Reads only what the kernel has accepted:
 * the message may be anywhere. */
static ssize_t finish(int fd, struct msghdr *message, int flags, int64_t began, ssize_t count)
{
    if (count > 0 || !page_accelerates())
        return count;
    if (count < 0 && get_errno() == EAGAIN && is_accelerated(fd) && waits(fd, flags))
        count = receive_later(fd, message, flags, began);
    if (count == 0 && wants_none(message))
        return 0;
    return tell_reset(fd, count);
}

static ssize_t receive_message(int fd, struct msghdr *message, int flags)
{
    int64_t began = begin();
    bool all = waits_for_all(fd, flags);
    ssize_t count;

    if (all)
        flags &= ~MSG_WAITALL;
    count = finish(fd, message, flags, began, libc()->recvmsg(fd, message, flags));
    return all && count > 0 ? receive_rest(fd, message, flags, began, count) : count;
}

static ssize_t receive(int fd, void *bytes, size_t size, int flags)
{
    struct iovec vector = {bytes, size};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    int64_t began = begin();

    if (waits_for_all(fd, flags))
        return receive_message(fd, &message, flags);
    return finish(fd, &message, flags, began, libc()->recv(fd, bytes, size, flags));
}

MOSNHOOK_EXPORT ssize_t recv(int fd, void *bytes, size_t size, int flags)
{
    return receive(fd, bytes, size, flags);
}

/* TCP reports no address. What another kind of socket reported, as with an empty datagram, stays.
 */
MOSNHOOK_EXPORT ssize_t recvfrom(int fd, void *bytes, size_t size, int flags,
                                 struct sockaddr *address, socklen_t *length)
{
    struct iovec vector = {bytes, size};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    int64_t began = begin();
    ssize_t count, first;

    if (waits_for_all(fd, flags)) {
        count = receive_message(fd, &message, flags);
    } else {
        first = libc()->recvfrom(fd, bytes, size, flags, address, length);
        if (first > 0 || !page_accelerates())
            return first;
        count = finish(fd, &message, flags, began, first);
        if (first == 0)
            return count;
    }
    if (count >= 0 && address && length)
        *length = 0;
    return count;
}

MOSNHOOK_EXPORT ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    return receive_message(fd, message, flags);
}

MOSNHOOK_EXPORT ssize_t read(int fd, void *bytes, size_t size)
{
    struct iovec vector = {bytes, size};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    int64_t began = begin();

    return finish(fd, &message, 0, began, libc()->read(fd, bytes, size));
}

MOSNHOOK_EXPORT ssize_t readv(int fd, const struct iovec *vector, int entries)
{
    struct msghdr message = {.msg_iov = (struct iovec *)vector,
                             .msg_iovlen = (size_t)(entries > 0 ? entries : 0)};
    int64_t began = begin();

    return finish(fd, &message, 0, began, libc()->readv(fd, vector, entries));
}

/* What programs that were built with _FORTIFY_SOURCE call. glibc complains about too small a
 * buffer. */
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

/* Takes bytes from the socket only when the pipe has them: none are lost if it is full. */
static ssize_t copy_to_pipe(int fd, int pipe, size_t size, unsigned flags)
{
    char bytes[SPLICE_PART];
    ssize_t count, written;

    /* As in the kernel: SPLICE_F_NONBLOCK is about the pipe, not the socket. */
    count = receive(fd, bytes, size < sizeof bytes ? size : sizeof bytes, MSG_PEEK);
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

/* The kernel reports what is wrong with a call. */
MOSNHOOK_EXPORT ssize_t splice(int in, int64_t *in_offset, int out, int64_t *out_offset,
                               size_t size, unsigned flags)
{
    if (!in_offset && !out_offset && size > 0 && !(flags & ~(unsigned)SPLICE_FLAGS) &&
        is_accelerated(in) && sys_fcntl(out, GET_PIPE_SIZE, 0) >= 0)
        return copy_to_pipe(in, out, size, flags);
    return libc()->splice(in, in_offset, out, out_offset, size, flags);
}

/* Without redirected data waiting: counts what came by TCP, without copying it. */
static int waiting_by_tcp(int fd)
{
    long count = sys_recv(fd, NULL, INT_MAX, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT);

    return count > 0 ? (int)count : 0;
}

MOSNHOOK_EXPORT int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    void *argument;
    int result;

    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    result = libc()->ioctl(fd, request, argument);
    /* musl's takes an int: the rest of the register is undefined. */
    if (result == 0 && (uint32_t)request == FIONREAD && page_accelerates() &&
        *(int *)argument == 0 && is_accelerated(fd))
        *(int *)argument = waiting_by_tcp(fd);
    return result;
}
