/* Calls with pointers and lengths that are wrong. One line for each: what was given, and what came.
 *
 * pointers IP PORT
 *
 * IP PORT is where getpeername()'s socket connects to; everything else is not to connect at all. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static long page_size;
static char *page; /* before one that is not mapped */
static struct sockaddr_storage whole;

static const socklen_t lengths[] = {0, 1, 2, 15, 16, 24, 28, 128, 129, 4096, (socklen_t)-1};
enum { LENGTHS = sizeof lengths / sizeof *lengths };

static struct {
    const char *name;
    void *at;
    size_t readable; /* bytes */
} places[] = {
    {"NULL", NULL, 0},     {"1", (void *)1, 0},
    {"-1", (void *)-1, 0}, {"kernel", (void *)0xffff800000000000, 0},
    {"unmapped", NULL, 0}, {"last byte", NULL, 1},
    {"last 2", NULL, 2},   {"last 8", NULL, 8},
    {"last 15", NULL, 15}, {"whole", &whole, sizeof whole},
};
enum { PLACES = sizeof places / sizeof *places };

static void prepare(int family)
{
    struct sockaddr_in6 ipv6 = {.sin6_family = AF_INET6, .sin6_port = htons(9)};
    struct sockaddr_in ipv4 = {.sin_family = AF_INET, .sin_port = htons(9)};

    inet_pton(AF_INET, "192.0.2.7", &ipv4.sin_addr);
    inet_pton(AF_INET6, "2001:db8::7", &ipv6.sin6_addr);
    memset(&whole, 0, sizeof whole);
    if (family == AF_INET)
        memcpy(&whole, &ipv4, sizeof ipv4);
    else
        memcpy(&whole, &ipv6, sizeof ipv6);
    for (int i = 4; i < PLACES - 1; i++) {
        places[i].at = page + page_size - places[i].readable;
        memcpy(places[i].at, &whole, places[i].readable);
    }
}

/* Whether it would be a good address: that is no matter of this program. */
static int connects(int i, socklen_t length)
{
    return places[i].readable >= 16 && length >= 16 && length <= 4096;
}

static void say(const char *call, const char *what, int i, long length, long result)
{
    printf("%s %s %s %ld: %ld %s\n", call, what, places[i].name, length, result,
           result < 0 ? strerrorname_np(errno) : "");
}

static void calls_with_addresses(const char *what, int fd, int i, socklen_t length)
{
    struct iovec bytes = {"x", 1};
    struct mmsghdr message = {
        .msg_hdr = {
            .msg_name = places[i].at, .msg_namelen = length, .msg_iov = &bytes, .msg_iovlen = 1}};
    int flags = MSG_FASTOPEN | MSG_DONTWAIT | MSG_NOSIGNAL;

    if (connects(i, length))
        return;
    say("connect", what, i, length, connect(fd, places[i].at, length));
    say("sendto", what, i, length, sendto(fd, "x", 1, flags, places[i].at, length));
    say("sendmsg", what, i, length, sendmsg(fd, &message.msg_hdr, flags));
    say("sendmmsg", what, i, length, sendmmsg(fd, &message, 1, (unsigned)flags));
}

static void calls_with_messages(int fd)
{
    int flags = MSG_FASTOPEN | MSG_DONTWAIT | MSG_NOSIGNAL;

    for (int i = 0; i < PLACES - 1; i++) {
        say("sendmsg", "message", i, 0, sendmsg(fd, places[i].at, flags));
        say("sendmmsg", "messages", i, 1, sendmmsg(fd, places[i].at, 1, (unsigned)flags));
        say("sendmmsg", "messages", i, 0, sendmmsg(fd, places[i].at, 0, (unsigned)flags));
    }
}

static void peers(int fd)
{
    struct sockaddr_storage name;
    static socklen_t length;

    for (int i = 0; i < PLACES; i++) {
        for (int j = 0; j < LENGTHS; j++) {
            length = lengths[j];
            memset(&name, 0xaa, sizeof name);
            if (places[i].readable < 8)
                say("getpeername", "name", i, length, getpeername(fd, places[i].at, &length));
            say("getpeername", "good name", i, lengths[j],
                getpeername(fd, (struct sockaddr *)&name, &length));
            printf("%u %x %x\n", length, ((unsigned char *)&name)[length < 128 ? length : 127],
                   ((unsigned char *)&name)[0]);
        }
        if (places[i].readable < 8)
            say("getpeername", "length", i, 0,
                getpeername(fd, (struct sockaddr *)&name, places[i].at));
    }
}

static int connected(const char *ip, int port)
{
    struct sockaddr_in6 *ipv6 = (void *)&whole;
    struct sockaddr_in *ipv4 = (void *)&whole;
    int family = strchr(ip, ':') ? AF_INET6 : AF_INET, fd = socket(family, SOCK_STREAM, 0);
    char byte;

    prepare(family);
    ipv4->sin_port = htons((uint16_t)port); /* where that of IPv6 is, too */
    inet_pton(family, ip, family == AF_INET ? (void *)&ipv4->sin_addr : (void *)&ipv6->sin6_addr);
    if (connect(fd, (struct sockaddr *)&whole, family == AF_INET ? 16 : 28) < 0) {
        perror("connect");
        exit(2);
    }
    /* It is an echo server's: when it has answered, everybody on the way has had his look. */
    if (write(fd, "x", 1) != 1 || read(fd, &byte, 1) != 1)
        exit(3);
    return fd;
}

int main(int count, char **arguments)
{
    static const int families[] = {AF_INET, AF_INET6};
    int fd, pipes[2];

    if (count != 3 || pipe(pipes) < 0)
        return 2;
    page_size = sysconf(_SC_PAGESIZE);
    page = mmap(NULL, (size_t)(2 * page_size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                -1, 0);
    munmap(page + page_size, (size_t)page_size);
    fd = connected(arguments[1], atoi(arguments[2]));
    for (int f = 0; f < 2; f++) {
        prepare(families[f]);
        for (int i = 0; i < PLACES; i++)
            for (int j = 0; j < LENGTHS; j++) {
                int tcp = socket(families[f], SOCK_STREAM, 0);
                int udp = socket(families[f], SOCK_DGRAM, 0),
                    local = socket(AF_UNIX, SOCK_STREAM, 0);

                calls_with_addresses(f ? "tcp6" : "tcp4", tcp, i, lengths[j]);
                calls_with_addresses("udp", udp, i, lengths[j]);
                calls_with_addresses("unix", local, i, lengths[j]);
                calls_with_addresses("pipe", pipes[0], i, lengths[j]);
                calls_with_addresses("none", -1, i, lengths[j]);
                calls_with_addresses("connected", fd, i, lengths[j]);
                close(tcp);
                close(udp);
                close(local);
            }
    }
    calls_with_messages(fd);
    peers(fd);
    return 0;
}
