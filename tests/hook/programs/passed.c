/* getpeername() of a socket that this program did not connect itself.
 *
 * passed exec IP PORT        connects, then executes itself, which tells the peer
 * passed rights IP PORT      connects, then passes it to a child that has never connected anything
 * passed forge IP PORT UID   as `rights`, but as that user, and with a memo that says 192.0.2.99 99
 * passed forge-failed IP PORT UID
 *                            likewise, and the memo says that the connect failed
 * passed peer FD             tells the peer of this descriptor
 * passed receive FD          tells the peer of the descriptor that comes there */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../../hook/contract.h"

enum { FASTOPEN_KEY = 33 };

static int fail(const char *what)
{
    perror(what);
    return 2;
}

static int tell_peer(int fd)
{
    struct sockaddr_in6 peer;
    struct sockaddr_in *ipv4 = (void *)&peer;
    socklen_t length = sizeof peer;
    char text[INET6_ADDRSTRLEN];

    if (getpeername(fd, (struct sockaddr *)&peer, &length) < 0)
        return fail("getpeername");
    if (peer.sin6_family == AF_INET)
        inet_ntop(AF_INET, &ipv4->sin_addr, text, sizeof text);
    else
        inet_ntop(AF_INET6, &peer.sin6_addr, text, sizeof text);
    printf("peer=%s %d\n", text, ntohs(peer.sin6_port));
    return 0;
}

static int connected(const char *ip, int port)
{
    struct sockaddr_in6 ipv6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    struct sockaddr_in ipv4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd;

    if (inet_pton(AF_INET, ip, &ipv4.sin_addr) == 1) {
        fd = socket(AF_INET, SOCK_STREAM, 0);
        return connect(fd, (struct sockaddr *)&ipv4, sizeof ipv4) == 0 ? fd : -1;
    }
    inet_pton(AF_INET6, ip, &ipv6.sin6_addr);
    fd = socket(AF_INET6, SOCK_STREAM, 0);
    return connect(fd, (struct sockaddr *)&ipv6, sizeof ipv6) == 0 ? fd : -1;
}

/* One message with, or for, one descriptor. */
static struct msghdr *message(void)
{
    static char byte;
    static struct iovec bytes = {&byte, 1};
    static union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } rights;
    static struct msghdr made = {.msg_iov = &bytes,
                                 .msg_iovlen = 1,
                                 .msg_control = &rights,
                                 .msg_controllen = sizeof rights};

    rights.header = (struct cmsghdr){
        .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    return &made;
}

static int receive(int channel)
{
    struct msghdr *received = message();
    int fd;

    if (recvmsg(channel, received, 0) != 1)
        return fail("recvmsg");
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(received)), sizeof fd);
    return tell_peer(fd);
}

static void forge(int fd, int error)
{
    struct mosnhook_memo memo = {
        .magic = MOSNHOOK_MEMO_MAGIC,
        .kind = MOSNHOOK_MEMO_RELAYED,
        .error = (uint16_t)error,
        .destination = {.ip = {[10] = 0xff, 0xff, 192, 0, 2, 99}, .port = 99},
    };

    if (setsockopt(fd, IPPROTO_TCP, FASTOPEN_KEY, &memo, sizeof memo) < 0)
        perror("TCP_FASTOPEN_KEY");
}

static int pass(char **arguments)
{
    int channel[2], status, fd;
    struct msghdr *sent = message();
    int forged = strncmp(arguments[1], "forge", 5) == 0;
    char text[12];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, channel) < 0)
        return fail("socketpair");
    snprintf(text, sizeof text, "%d", channel[1]);
    if (fork() == 0) {
        execl(arguments[0], arguments[0], "receive", text, NULL);
        _exit(3);
    }
    if (forged && setuid((uid_t)atoi(arguments[4])) < 0)
        return fail("setuid");
    fd = connected(arguments[2], atoi(arguments[3]));
    if (fd < 0)
        return fail("connect");
    if (forged)
        forge(fd, strcmp(arguments[1], "forge-failed") == 0 ? EHOSTUNREACH : 0);
    memcpy(CMSG_DATA(CMSG_FIRSTHDR(sent)), &fd, sizeof fd);
    if (sendmsg(channel[0], sent, 0) != 1)
        return fail("sendmsg");
    return wait(&status) > 0 && status == 0 ? 0 : 3;
}

int main(int count, char **arguments)
{
    char text[12];

    if (count == 3 && strcmp(arguments[1], "peer") == 0)
        return tell_peer(atoi(arguments[2]));
    if (count == 3 && strcmp(arguments[1], "receive") == 0)
        return receive(atoi(arguments[2]));
    if (count == 4 && strcmp(arguments[1], "exec") == 0) {
        snprintf(text, sizeof text, "%d", connected(arguments[2], atoi(arguments[3])));
        execl(arguments[0], arguments[0], "peer", text, NULL);
    }
    return count >= 4 ? pass(arguments) : 2;
}
