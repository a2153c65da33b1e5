/* An HTTP/1.0 client with plain sockets, blocking or with poll: `client blocking|polling IP PORT`.
 *
 * Prints the peer that the kernel (or who stands in for it) names and the response's body. Exit 1
 * with errno's text when it cannot connect. Small enough for every libc: it is built with glibc
 * and with musl. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PATIENCE_MS = 20000 };

static int finish(int fd)
{
    struct pollfd writable = {.fd = fd, .events = POLLOUT};
    socklen_t size = sizeof(int);
    int error = ETIMEDOUT;

    if (poll(&writable, 1, PATIENCE_MS) == 1) {
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    }
    errno = error;
    return error == 0 ? 0 : -1;
}

static int connect_to(const struct addrinfo *to, int polling)
{
    int fd = socket(to->ai_family, to->ai_socktype | (polling ? SOCK_NONBLOCK : 0), 0);

    if (fd < 0) {
        return -1;
    }
    if (connect(fd, to->ai_addr, to->ai_addrlen) != 0) {
        if (!polling || errno != EINPROGRESS || finish(fd) != 0) {
            return -1;
        }
    }
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    return fd;
}

static int print_peer(int fd)
{
    struct sockaddr_storage peer;
    socklen_t size = sizeof(peer);
    char host[NI_MAXHOST], port[NI_MAXSERV];

    if (getpeername(fd, (struct sockaddr *)&peer, &size) != 0 ||
        getnameinfo((struct sockaddr *)&peer, size, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        return -1;
    }
    printf("peer %s %s\n", host, port);
    return 0;
}

static int fetch(int fd)
{
    static const char request[] = "GET /whoami HTTP/1.0\r\nHost: interop\r\n\r\n";
    char buffer[4096], *body;
    size_t used = 0;
    ssize_t got;

    if (send(fd, request, strlen(request), MSG_NOSIGNAL) != (ssize_t)strlen(request)) {
        return -1;
    }
    while ((got = recv(fd, buffer + used, sizeof(buffer) - 1 - used, 0)) > 0) {
        used += (size_t)got;
    }
    buffer[used] = 0;
    body = strstr(buffer, "\r\n\r\n");
    if (got < 0 || body == NULL) {
        return -1;
    }
    printf("%s", body + 4);
    return 0;
}

int main(int argc, char **argv)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST}, *to;
    int fd;

    if (argc != 4 || getaddrinfo(argv[2], argv[3], &hints, &to) != 0) {
        fprintf(stderr, "usage: client blocking|polling IP PORT\n");
        return 2;
    }
    fd = connect_to(to, strcmp(argv[1], "polling") == 0);
    if (fd < 0) {
        fprintf(stderr, "connect: %s\n", strerror(errno));
        return 1;
    }
    if (print_peer(fd) != 0 || fetch(fd) != 0) {
        perror("client");
        return 1;
    }
    close(fd);
    freeaddrinfo(to);
    return 0;
}
