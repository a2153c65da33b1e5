/* connect() */
#include "mosnhook.h"

MOSNHOOK_EXPORT int connect(int fd, const struct sockaddr *address, socklen_t length)
{
    int result = hook_active() ? capture(fd, address, length, 0) : OUTCOME_NOT_OURS;

    if (result == OUTCOME_NOT_OURS)
        return libc()->connect(fd, address, length);
    return errno_result(result);
}
