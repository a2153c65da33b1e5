/* sendto(), sendmsg() and sendmmsg() with MSG_FASTOPEN, which connect and send in one call.
 *
 * For a captured destination the socket is connected first, and then the data goes the ordinary
 * way: a fast open without a cookie does the same. A direct connection stays a fast open, though
 * perhaps to another address. */
#include <errno.h>

#include "mosnhook.h"

/* The start of struct mmsghdr, which only _GNU_SOURCE shows. */
struct first_message {
    struct msghdr header;
    unsigned sent;
};

/* True if all that is left is to send without MSG_FASTOPEN. Else `*result` is what the call
 * returns, or OUTCOME_NOT_OURS: send to the target. */
static bool connected_first(int fd, struct target *target, int flags, int *result)
{
    *result = OUTCOME_NOT_OURS;
    if (!(flags & MSG_FASTOPEN) || !target->address || !hook_active())
        return false;
    *result = capture(fd, target, (flags & MSG_DONTWAIT) ? CAPTURE_CONNECT_DONT_WAIT : 0);
    return *result == 0;
}

MOSNHOOK_EXPORT ssize_t sendto(int fd, const void *bytes, size_t size, int flags,
                               const struct sockaddr *address, socklen_t length)
{
    struct target target;
    int result;

    target.address = address;
    target.length = length;
    if (connected_first(fd, &target, flags, &result))
        return libc()->sendto(fd, bytes, size, flags & ~MSG_FASTOPEN, NULL, 0);
    if (result == OUTCOME_NOT_OURS)
        return libc()->sendto(fd, bytes, size, flags, target.address, target.length);
    return errno_result(result);
}

/* The kernel cuts a name that is too long, and refuses a negative length. */
static void name_of(const struct msghdr *message, struct target *target)
{
    socklen_t longest = sizeof(struct sockaddr_storage);

    target->address = message->msg_name;
    target->length = message->msg_namelen;
    if (target->length > longest && target->length <= INT32_MAX)
        target->length = longest;
}

static ssize_t send_to_target(int fd, const struct msghdr *message, int flags,
                              const struct target *target)
{
    struct msghdr led = *message;

    led.msg_name = (void *)target->address;
    led.msg_namelen = target->length;
    return libc()->sendmsg(fd, &led, flags);
}

MOSNHOOK_EXPORT ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    struct target target;
    int result;

    if (!(flags & MSG_FASTOPEN) || !pointer_readable(message, sizeof *message))
        return libc()->sendmsg(fd, message, flags);
    name_of(message, &target);
    /* TCP heeds a message's name only with MSG_FASTOPEN, so the name can stay. */
    if (connected_first(fd, &target, flags, &result))
        return libc()->sendmsg(fd, message, flags & ~MSG_FASTOPEN);
    if (result == OUTCOME_NOT_OURS)
        return send_to_target(fd, message, flags, &target);
    return errno_result(result);
}

MOSNHOOK_EXPORT int sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    struct first_message *first = (struct first_message *)messages;
    struct target target;
    ssize_t sent;
    int result;

    if (!(flags & MSG_FASTOPEN) || count == 0 || !pointer_readable(first, sizeof *first))
        return libc()->sendmmsg(fd, messages, count, flags);
    name_of(&first->header, &target);
    if (connected_first(fd, &target, flags, &result))
        return libc()->sendmmsg(fd, messages, count, flags & ~MSG_FASTOPEN);
    if (result != OUTCOME_NOT_OURS)
        return errno_result(result);
    if (target.address == first->header.msg_name)
        return libc()->sendmmsg(fd, messages, count, flags);
    /* The application's messages must not change: send the first one alone, as sendmmsg may. */
    sent = send_to_target(fd, &first->header, flags, &target);
    if (sent < 0)
        return -1;
    if (!word_writable(&first->sent)) /* with the padding behind it */
        return errno_result(EFAULT);
    first->sent = (unsigned)sent;
    return 1;
}
