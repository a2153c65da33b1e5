/* For LD_PRELOAD: a thread other than the main one goes on late after each connect(), as if the
 * processor had been busy. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LATE_US = 300 * 1000 }; /* the kernel acknowledges within 200 ms */

int connect(int fd, const struct sockaddr *to, socklen_t length)
{
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    int result = real(fd, to, length), error = errno;

    if (gettid() != getpid())
        usleep(LATE_US);
    errno = error;
    return result;
}
