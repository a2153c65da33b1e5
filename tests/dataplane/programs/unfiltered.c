/* For LD_PRELOAD: a kernel on which socket filters need a privilege, which we have not. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/socket.h>

int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
    int (*real)(int, int, int, const void *, socklen_t) = dlsym(RTLD_NEXT, "setsockopt");

    if (level == SOL_SOCKET && name == SO_ATTACH_FILTER) {
        errno = EPERM;
        return -1;
    }
    return real(fd, level, name, value, length);
}
