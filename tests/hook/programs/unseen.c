/* A captured connect fails; then the same socket is connected by raw system calls, which the hook
 * does not see, and reset there. Prints SO_ERROR after each.
 *
 * unseen IP PORT PORT-ON-LOOPBACK   IPv4 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static void print_error(const char *name, int fd)
{
    int error = -1;
    socklen_t length = sizeof error;

    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    printf("%s=%d\n", name, error);
}

static int connect_unseen(int fd, const struct sockaddr_in *address)
{
    return syscall(SYS_connect, fd, address, sizeof *address) < 0 ? errno : 0;
}

int main(int count, char **arguments)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), result;
    struct pollfd polled = {.fd = fd, .events = POLLOUT};

    if (count != 4 || inet_pton(AF_INET, arguments[1], &address.sin_addr) != 1)
        return 2;
    address.sin_port = htons((uint16_t)atoi(arguments[2]));
    connect(fd, (struct sockaddr *)&address, sizeof address);
    poll(&polled, 1, 10000);
    print_error("captured", fd);

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons((uint16_t)atoi(arguments[3]));
    result = connect_unseen(fd, &address);
    if (result == ECONNABORTED) /* what the kernel says of the one before, once */
        result = connect_unseen(fd, &address);
    printf("unseen=%d\n", result);
    polled.events = POLLIN;
    poll(&polled, 1, 10000);
    print_error("reset", fd);
    return 0;
}
