/* Connects as told and prints what happened, one "name=value" a line.
 *
 * connect [options] IP PORT      once
 * connect [options]              for each "IP PORT" line of the standard input, "done" after each
 *
 * -n       non-blocking: polls, then reads SO_ERROR
 * -s       does not (with -A it waits nevertheless)
 * -t MS    SO_SNDTIMEO
 * -b IP    binds to this source address
 * -p PORT  binds to this source port
 * -6       IPV6_V6ONLY
 * -S SCOPE the scope of an IPv6 address
 * -m       MPTCP
 * -u       UDP
 * -f       TCP_FASTOPEN_CONNECT, and tells it afterwards
 * -F CALL  MSG_FASTOPEN with sendto, sendmsg or sendmmsg in place of connect
 * -D       MSG_DONTWAIT with -F
 * -a PORT  connects the same socket again, to this port
 * -A MS    waits that long for the socket before it connects again
 * -e       sends "hello" (unless -F has) and prints what comes back
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

static struct {
    bool nonblocking, skip_error, v6_only, multipath, udp, fast_open_connect, dont_wait, echo;
    unsigned scope;
    int timeout_ms, source_port, again_port, again_wait_ms;
    const char *source, *fast_open_call;
} options;

static const char payload[] = "hello";

static long now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void check(const char *what, int result)
{
    if (result < 0) {
        perror(what);
        exit(2);
    }
}

static socklen_t parse(const char *ip, int port, struct sockaddr_storage *address)
{
    struct sockaddr_in *ipv4 = (void *)address;
    struct sockaddr_in6 *ipv6 = (void *)address;

    memset(address, 0, sizeof *address);
    if (inet_pton(AF_INET, ip, &ipv4->sin_addr) == 1) {
        ipv4->sin_family = AF_INET;
        ipv4->sin_port = htons((uint16_t)port);
        return sizeof *ipv4;
    }
    if (inet_pton(AF_INET6, ip, &ipv6->sin6_addr) != 1) {
        fprintf(stderr, "not an address: %s\n", ip);
        exit(2);
    }
    ipv6->sin6_family = AF_INET6;
    ipv6->sin6_port = htons((uint16_t)port);
    ipv6->sin6_scope_id = options.scope;
    return sizeof *ipv6;
}

static void print_address(const char *name, int result, const struct sockaddr_storage *address)
{
    const struct sockaddr_in *ipv4 = (const void *)address;
    const struct sockaddr_in6 *ipv6 = (const void *)address;
    char text[INET6_ADDRSTRLEN] = "";

    if (result < 0) {
        printf("%s=%d\n", name, errno);
    } else if (address->ss_family == AF_INET) {
        inet_ntop(AF_INET, &ipv4->sin_addr, text, sizeof text);
        printf("%s=%s %d\n", name, text, ntohs(ipv4->sin_port));
    } else {
        inet_ntop(AF_INET6, &ipv6->sin6_addr, text, sizeof text);
        printf("%s=%s %d\n", name, text, ntohs(ipv6->sin6_port));
    }
}

static int begin(int fd, const struct sockaddr_storage *address, socklen_t length)
{
    struct iovec bytes = {(void *)payload, strlen(payload)};
    struct mmsghdr message = {.msg_hdr = {.msg_name = (void *)address,
                                          .msg_namelen = length,
                                          .msg_iov = &bytes,
                                          .msg_iovlen = 1}};
    int flags = MSG_FASTOPEN | MSG_NOSIGNAL | (options.dont_wait ? MSG_DONTWAIT : 0);
    ssize_t sent;

    if (!options.fast_open_call)
        return connect(fd, (const struct sockaddr *)address, length);
    if (strcmp(options.fast_open_call, "sendto") == 0)
        sent =
            sendto(fd, payload, strlen(payload), flags, (const struct sockaddr *)address, length);
    else if (strcmp(options.fast_open_call, "sendmsg") == 0)
        sent = sendmsg(fd, &message.msg_hdr, flags);
    else
        sent = sendmmsg(fd, &message, 1, (unsigned)flags) == 1 ? (ssize_t)message.msg_len : -1;
    if (sent >= 0 && sent != (ssize_t)strlen(payload))
        printf("sent=%zd\n", sent);
    return sent < 0 ? -1 : 0;
}

static int open_socket(int family)
{
    int protocol = options.multipath ? IPPROTO_MPTCP : 0, one = 1;
    int fd = socket(family, options.udp ? SOCK_DGRAM : SOCK_STREAM, protocol);
    struct timeval timeout = {options.timeout_ms / 1000, options.timeout_ms % 1000 * 1000};
    struct sockaddr_storage source;
    socklen_t length;

    check("socket", fd);
    if (options.v6_only)
        check("IPV6_V6ONLY", setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one));
    if (options.fast_open_connect)
        check("TCP_FASTOPEN_CONNECT",
              setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &one, sizeof one));
    if (options.timeout_ms)
        check("SO_SNDTIMEO", setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout));
    if (options.source || options.source_port) {
        length = parse(options.source      ? options.source
                       : family == AF_INET ? "0.0.0.0"
                                           : "::",
                       options.source_port, &source);
        check("bind", bind(fd, (struct sockaddr *)&source, length));
    }
    if (options.nonblocking)
        check("O_NONBLOCK", fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK));
    return fd;
}

static void wait_for(int fd, int events, int ms)
{
    struct pollfd polled = {.fd = fd, .events = (short)events};
    int error = -1, ready = poll(&polled, 1, ms);
    socklen_t length = sizeof error;

    printf("ready=%d\n", ready);
    check("SO_ERROR", getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length));
    printf("so_error=%d\n", error);
}

static void echo(int fd)
{
    char received[64];
    ssize_t size;

    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    if (!options.fast_open_call && send(fd, payload, strlen(payload), MSG_NOSIGNAL) < 0)
        printf("send=%d\n", errno);
    size = recv(fd, received, sizeof received, 0);
    if (size < 0)
        printf("echo=errno %d\n", errno);
    else
        printf("echo=%.*s\n", (int)size, received);
}

static void print_option(const char *name, int fd, int level, int option)
{
    int value = -1;
    socklen_t length = sizeof value;

    getsockopt(fd, level, option, &value, &length);
    printf("%s=%d\n", name, value);
}

static void run(const char *ip, int port)
{
    struct sockaddr_storage address, other;
    socklen_t length = parse(ip, port, &address);
    int fd = open_socket(address.ss_family), result, error;
    long began = now_ms();

    errno = 0;
    result = begin(fd, &address, length);
    error = result < 0 ? errno : 0;
    printf("connect=%d\nms=%ld\n", error, now_ms() - began);
    if (result == 0 && errno != 0)
        printf("errno=%d\n", errno); /* a success must leave it alone */
    if ((options.nonblocking || options.dont_wait) && !options.skip_error)
        wait_for(fd, POLLOUT, 3000);
    if (options.again_port) {
        if (options.again_wait_ms) {
            struct pollfd polled = {.fd = fd, .events = POLLOUT};

            poll(&polled, 1, options.again_wait_ms);
        }
        length = parse(ip, options.again_port, &address);
        result = connect(fd, (struct sockaddr *)&address, length);
        printf("again=%d\n", result < 0 ? errno : 0);
        if (options.nonblocking && result < 0 && errno == EINPROGRESS)
            wait_for(fd, POLLOUT, 3000);
    }
    length = sizeof other;
    result = getpeername(fd, (struct sockaddr *)&other, &length);
    print_address("peer", result, &other);
    length = sizeof other;
    print_address("local", getsockname(fd, (struct sockaddr *)&other, &length), &other);
    if (options.v6_only)
        print_option("v6_only", fd, IPPROTO_IPV6, IPV6_V6ONLY);
    if (options.fast_open_connect)
        print_option("fast_open", fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT);
    printf("nonblocking=%d\n", (fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
    if (options.echo)
        echo(fd);
    close(fd);
    printf("done\n");
    fflush(stdout);
}

int main(int count, char **arguments)
{
    char line[128], ip[64];
    int option, port;

    while ((option = getopt(count, arguments, "nst:b:p:6S:mufF:Da:A:e")) >= 0)
        switch (option) {
        case 'n':
            options.nonblocking = true;
            break;
        case 's':
            options.skip_error = true;
            break;
        case 't':
            options.timeout_ms = atoi(optarg);
            break;
        case 'b':
            options.source = optarg;
            break;
        case 'p':
            options.source_port = atoi(optarg);
            break;
        case '6':
            options.v6_only = true;
            break;
        case 'S':
            options.scope = (unsigned)atoi(optarg);
            break;
        case 'm':
            options.multipath = true;
            break;
        case 'u':
            options.udp = true;
            break;
        case 'f':
            options.fast_open_connect = true;
            break;
        case 'F':
            options.fast_open_call = optarg;
            break;
        case 'D':
            options.dont_wait = true;
            break;
        case 'a':
            options.again_port = atoi(optarg);
            break;
        case 'A':
            options.again_wait_ms = atoi(optarg);
            break;
        case 'e':
            options.echo = true;
            break;
        default:
            return 2;
        }
    if (optind + 2 == count) {
        run(arguments[optind], atoi(arguments[optind + 1]));
        return 0;
    }
    while (fgets(line, sizeof line, stdin))
        if (sscanf(line, "%63s %d", ip, &port) == 2)
            run(ip, port);
    return 0;
}
