/* Connects while more of this user's descriptors are on their way through Unix sockets than
 * RLIMIT_NOFILE allows, of which all have arrived a moment later. To be run without
 * CAP_SYS_RESOURCE and CAP_SYS_ADMIN.
 *
 * flight IP PORT */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { IN_FLIGHT = 100, LIMIT = 20, ARRIVE_AFTER_US = 200000 };

static int pair[2];

static int send_fd(int fd)
{
    char byte = 0;
    struct iovec bytes = {&byte, 1};
    _Alignas(struct cmsghdr) char rights[CMSG_SPACE(sizeof fd)] = {0};
    struct msghdr message = {
        .msg_iov = &bytes, .msg_iovlen = 1, .msg_control = rights, .msg_controllen = sizeof rights};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);

    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    return sendmsg(pair[0], &message, 0) == 1 ? 0 : errno;
}

static void *arrive(void *unused)
{
    usleep(ARRIVE_AFTER_US); /* so that it does meet the limit */
    close(pair[0]);
    close(pair[1]);
    return unused;
}

int main(int count, char **arguments)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    struct rlimit limit = {LIMIT, LIMIT};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    pthread_t thread;

    if (count != 3 || inet_pton(AF_INET, arguments[1], &address.sin_addr) != 1)
        return 2;
    address.sin_port = htons((uint16_t)atoi(arguments[2]));
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    for (int i = 0; i < IN_FLIGHT; i++)
        if (send_fd(0) != 0)
            return 3;
    setrlimit(RLIMIT_NOFILE, &limit);
    printf("sent=%d\n", send_fd(0));
    pthread_create(&thread, NULL, arrive, NULL);
    printf("connect=%d\n",
           connect(fd, (struct sockaddr *)&address, sizeof address) < 0 ? errno : 0);
    pthread_join(thread, NULL);
    return 0;
}
