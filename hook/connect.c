/* connect() */
#include "mosnhook.h"

MOSNHOOK_EXPORT int connect(int fd, const struct sockaddr *address, socklen_t length)
{
    struct target target;
    int result = OUTCOME_NOT_OURS;

    target.address = address;
    target.length = length;
    if (hook_active())
        result = capture(fd, &target, 0);
    if (result == OUTCOME_NOT_OURS)
        return libc()->connect(fd, target.address, target.length);
    return errno_result(result);
}
