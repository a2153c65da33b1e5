/* sendto(), sendmsg() and sendmmsg() with MSG_FASTOPEN, which connect and send in one call.
 *
 * A captured destination is connected first, then the data goes the ordinary way: to the kernel
 * that is a fast open without a cookie. */
#include "mosnhook.h"

/* The start of struct mmsghdr, which only _GNU_SOURCE shows. */
struct first_message {
    struct msghdr header;
};

/* Whether there is nothing to do but to send without MSG_FASTOPEN. Else `*result` is what the call
 * returns, or OUTCOME_NOT_OURS. */
static bool connected_first(int fd, const struct sockaddr *address, socklen_t length, int flags,
                            int *result)
{
    *result = OUTCOME_NOT_OURS;
    if (!(flags & MSG_FASTOPEN) || !address || !hook_active())
        return false;
    *result = capture(fd, address, length, (flags & MSG_DONTWAIT) ? CAPTURE_CONNECT_DONT_WAIT : 0);
    return *result == 0;
}

MOSNHOOK_EXPORT ssize_t sendto(int fd, const void *bytes, size_t size, int flags,
                               const struct sockaddr *address, socklen_t length)
{
    int result;

    if (connected_first(fd, address, length, flags, &result))
        return libc()->sendto(fd, bytes, size, flags & ~MSG_FASTOPEN, NULL, 0);
    if (result == OUTCOME_NOT_OURS)
        return libc()->sendto(fd, bytes, size, flags, address, length);
    return errno_result(result);
}

MOSNHOOK_EXPORT ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    int result = OUTCOME_NOT_OURS;

    /* TCP looks at the name of a message with MSG_FASTOPEN only, so it can stay. */
    if ((flags & MSG_FASTOPEN) && message &&
        connected_first(fd, message->msg_name, message->msg_namelen, flags, &result))
        return libc()->sendmsg(fd, message, flags & ~MSG_FASTOPEN);
    if (result == OUTCOME_NOT_OURS)
        return libc()->sendmsg(fd, message, flags);
    return errno_result(result);
}

MOSNHOOK_EXPORT int sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    int result = OUTCOME_NOT_OURS;
    const struct msghdr *first = messages ? &((struct first_message *)messages)->header : NULL;

    if ((flags & MSG_FASTOPEN) && first && count > 0 &&
        connected_first(fd, first->msg_name, first->msg_namelen, flags, &result))
        return libc()->sendmmsg(fd, messages, count, flags & ~MSG_FASTOPEN);
    if (result == OUTCOME_NOT_OURS)
        return libc()->sendmmsg(fd, messages, count, flags);
    return errno_result(result);
}
