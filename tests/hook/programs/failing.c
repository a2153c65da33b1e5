/* The life of a socket whose connect fails, in all that a program can see of it.
 *
 * failing KIND IP PORT
 *
 * error    non-blocking, finds the error with SO_ERROR
 * connect  non-blocking, finds it with a second connect
 * edge     non-blocking, is told by an edge-triggered epoll
 * shut     non-blocking, shuts down first
 * undo     non-blocking, disconnects (by AF_UNSPEC) first
 * blocking waits for it in connect */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static struct sockaddr_storage address;
static socklen_t address_length;
static const struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
static int fd, step;

static void say(const char *what, long value)
{
    printf("%d %s=%ld\n", step++, what, value);
}

/* 0, or the errno. */
static void say_result(const char *what, long result)
{
    say(what, result < 0 ? errno : 0);
}

static void do_connect(void)
{
    say_result("connect", connect(fd, (struct sockaddr *)&address, address_length));
}

static void do_poll(int ms)
{
    struct pollfd polled = {.fd = fd, .events = 0x7fff};

    poll(&polled, 1, ms);
    say("poll", polled.revents);
}

static void do_so_error(void)
{
    int error = -1;
    socklen_t length = sizeof error;

    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    say("so_error", error);
}

/* What reads, writes and names it, and its state. */
static void look(void)
{
    struct sockaddr_storage peer;
    socklen_t length = sizeof peer;
    unsigned char state = 0;
    char byte;
    ssize_t size = recv(fd, &byte, 1, MSG_DONTWAIT);

    say("recv", size < 0 ? errno : -size);
    say_result("send", send(fd, "x", 1, MSG_DONTWAIT | MSG_NOSIGNAL));
    say_result("getpeername", getpeername(fd, (struct sockaddr *)&peer, &length));
    length = sizeof state;
    getsockopt(fd, IPPROTO_TCP, TCP_INFO, &state, &length);
    say("state", state);
}

static void wait_for_edges(void)
{
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLET | EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI};

    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    say("events", epoll_wait(epoll, &event, 1, 10000));
    say("which", event.events);
    say("more", epoll_wait(epoll, &event, 1, 50));
    close(epoll);
}

static int parse(const char *ip, int port)
{
    struct sockaddr_in *ipv4 = (void *)&address;
    struct sockaddr_in6 *ipv6 = (void *)&address;

    if (inet_pton(AF_INET, ip, &ipv4->sin_addr) == 1) {
        ipv4->sin_family = AF_INET;
        ipv4->sin_port = htons((uint16_t)port);
        address_length = sizeof *ipv4;
    } else {
        inet_pton(AF_INET6, ip, &ipv6->sin6_addr);
        ipv6->sin6_family = AF_INET6;
        ipv6->sin6_port = htons((uint16_t)port);
        address_length = sizeof *ipv6;
    }
    return address.ss_family;
}

int main(int count, char **arguments)
{
    const char *kind;

    if (count != 4)
        return 2;
    kind = arguments[1];
    fd = socket(parse(arguments[2], atoi(arguments[3])), SOCK_STREAM, 0);
    do_poll(0);
    if (strcmp(kind, "blocking") != 0)
        fcntl(fd, F_SETFL, O_NONBLOCK);
    do_connect();
    if (strcmp(kind, "edge") == 0)
        wait_for_edges();
    do_poll(10000);
    if (strcmp(kind, "shut") == 0) {
        say_result("shutdown", shutdown(fd, SHUT_WR));
        do_poll(0);
    }
    if (strcmp(kind, "undo") == 0) {
        say_result("undo", connect(fd, &nowhere, sizeof nowhere));
        do_poll(0);
    }
    if (strcmp(kind, "connect") != 0) {
        do_so_error();
        do_so_error();
        look();
        do_poll(0);
    }
    if (strcmp(kind, "undo") == 0) /* the rest is as with a new socket */
        return 0;
    if (strcmp(kind, "shut") == 0)
        say_result("shutdown", shutdown(fd, SHUT_RDWR));
    do_connect();
    look();
    do_so_error();
    do_poll(0);
    do_connect();
    do_poll(10000);
    do_connect();
    do_so_error();
    look();
    return 0;
}
