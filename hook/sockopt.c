/* getsockopt(SO_ERROR): the true errno of a non-blocking connect that failed at the upstream. The
 * sidecar can make a socket fail with ECONNRESET only, and leaves the true errno in the memo. */
#include <errno.h>

#include "mosnhook.h"

MOSNHOOK_EXPORT int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
{
    int result = libc()->getsockopt(fd, level, name, value, length);
    int error;

    if (level != SOL_SOCKET || name != SO_ERROR || result != 0 || *length != sizeof error)
        return result;
    __builtin_memcpy(&error, value, sizeof error);
    if (error == ECONNRESET && hook_active()) {
        error = memo_true_error(fd, error);
        __builtin_memcpy(value, &error, sizeof error);
    }
    return result;
}
