/* Another library to be preloaded, which also stands before connect(): writes a line to stderr for
 * each call to an IP address. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#undef connect

typedef int connect_function(int, const struct sockaddr *, socklen_t);

int neighbour_connect(int fd, const struct sockaddr *address, socklen_t length) __asm__("connect");

int neighbour_connect(int fd, const struct sockaddr *address, socklen_t length)
{
    static const char line[] = "neighbour\n";
    connect_function *next = (connect_function *)dlsym(RTLD_NEXT, "connect");

    if ((address->sa_family == AF_INET || address->sa_family == AF_INET6) &&
        write(2, line, sizeof line - 1) < 0)
        _exit(3);
    return next(fd, address, length);
}
