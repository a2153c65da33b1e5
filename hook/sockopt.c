/* getsockopt(SO_ERROR): the true errno of a non-blocking connect that failed at the upstream. The
 * sidecar can make a socket fail with ECONNRESET only, and leaves the true one in the page. */
#include "mosnhook.h"

MOSNHOOK_EXPORT int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
{
    int result = libc()->getsockopt(fd, level, name, value, length);
    struct peer peer;
    uint64_t cookie;
    int error;

    if (level != SOL_SOCKET || name != SO_ERROR || result != 0 || *length != sizeof error ||
        !peers_any())
        return result;
    __builtin_memcpy(&error, value, sizeof error);
    if (error == 0)
        return result;
    cookie = socket_cookie(fd);
    if (peers_find(cookie, &peer)) {
        error = page_true_error(cookie, error);
        __builtin_memcpy(value, &error, sizeof error);
    }
    return result;
}
