#include "net/diag.h"

#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/time.h>
#include <unistd.h>

enum {
    EVENTS_PER_TURN = 256, /* so that others get their turn */
    EVENT_ROOM = 1024,
    RECEIVE_BUFFER = 4 << 20, /* bytes; the kernel grants net.core.rmem_max at most */
    TIMER_OF_TIME_WAIT = 3,   /* idiag_timer of what is left of a socket */
    ANSWER_SECONDS = 5,       /* the kernel answers at once */
    /* All but LISTEN, TIME_WAIT, SYN_RECV and CLOSE. */
    LIVE_STATES = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11,
};

struct request {
    struct nlmsghdr header;
    struct inet_diag_req_v2 body;
};

static uint64_t cookie_of(const struct inet_diag_sockid *id)
{
    return (uint64_t)id->idiag_cookie[1] << 32 | id->idiag_cookie[0];
}

static void address_of(struct mosnhook_address *address, uint8_t family, const __be32 ip[4],
                       __be16 port)
{
    struct sockaddr_storage name;

    memset(&name, 0, sizeof name);
    name.ss_family = family;
    if (family == AF_INET) {
        ((struct sockaddr_in *)&name)->sin_port = port;
        memcpy(&((struct sockaddr_in *)&name)->sin_addr, ip, sizeof(struct in_addr));
    } else {
        ((struct sockaddr_in6 *)&name)->sin6_port = port;
        memcpy(&((struct sockaddr_in6 *)&name)->sin6_addr, ip, sizeof(struct in6_addr));
    }
    address_from_socket(address, &name);
}

static void take_info(struct diag_socket *socket, const struct tcp_info *info)
{
    socket->segments_sent = info->tcpi_segs_out;
    socket->segments_received = info->tcpi_segs_in;
    socket->bytes_sent = info->tcpi_bytes_sent - info->tcpi_bytes_retrans;
    socket->bytes_received = info->tcpi_bytes_received;
    socket->bytes_acked = info->tcpi_bytes_acked;
    socket->last_ack_ms = info->tcpi_last_ack_recv;
    socket->rtt_us = info->tcpi_rtt;
}

void diag_of_fd(int fd, struct diag_socket *socket)
{
    struct tcp_info info;
    socklen_t length = sizeof info;
    int unacked = 0;

    memset(socket, 0, sizeof *socket);
    memset(&info, 0, sizeof info);
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0 ||
        ioctl(fd, SIOCOUTQ, &unacked) < 0)
        return;
    take_info(socket, &info);
    socket->unacked = (uint32_t)unacked;
}

/* False for a message that does not describe a socket. */
static bool parse(const struct nlmsghdr *header, struct diag_socket *socket)
{
    const struct inet_diag_msg *message = NLMSG_DATA(header);
    const struct rtattr *attribute = (const void *)(message + 1);
    struct tcp_info info;
    size_t left, size;

    if (header->nlmsg_len < NLMSG_LENGTH(sizeof *message) ||
        (message->idiag_family != AF_INET && message->idiag_family != AF_INET6))
        return false;
    memset(socket, 0, sizeof *socket);
    memset(&info, 0, sizeof info);
    left = header->nlmsg_len - NLMSG_LENGTH(sizeof *message);
    for (; RTA_OK(attribute, left); attribute = RTA_NEXT(attribute, left))
        if (attribute->rta_type == INET_DIAG_INFO) { /* older and newer kernels' differ in size */
            size = RTA_PAYLOAD(attribute);
            memcpy(&info, RTA_DATA(attribute), size < sizeof info ? size : sizeof info);
        }
    socket->family = message->idiag_family;
    socket->state = message->idiag_state;
    socket->freed = message->idiag_timer == TIMER_OF_TIME_WAIT;
    socket->id = message->id;
    socket->cookie = cookie_of(&message->id);
    address_of(&socket->source, message->idiag_family, message->id.idiag_src,
               message->id.idiag_sport);
    socket->uid = message->idiag_uid;
    socket->inode = message->idiag_inode;
    socket->unread = message->idiag_rqueue;
    socket->unacked = message->idiag_wqueue;
    take_info(socket, &info);
    return true;
}

int diag_subscribe(void)
{
    static const int groups[] = {SKNLGRP_INET_TCP_DESTROY, SKNLGRP_INET6_TCP_DESTROY};
    struct sockaddr_nl address = {.nl_family = AF_NETLINK};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    int size = RECEIVE_BUFFER, error;

    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) == 0 &&
        setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &groups[0], sizeof groups[0]) == 0 &&
        setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &groups[1], sizeof groups[1]) == 0)
        return fd;
    error = errno;
    close(fd);
    return -error;
}

bool diag_read_events(int fd, diag_visitor *visit, void *argument, bool *lost)
{
    _Alignas(struct nlmsghdr) char buffer[EVENT_ROOM];
    struct diag_socket socket;

    for (int i = 0; i < EVENTS_PER_TURN; i++) {
        const struct nlmsghdr *header = (const void *)buffer;
        ssize_t size = recv(fd, buffer, sizeof buffer, 0);

        if (size < 0 && errno == ENOBUFS)
            *lost = true;
        if (size < 0 && errno == EAGAIN)
            return true;
        if (size > 0 && NLMSG_OK(header, (size_t)size) &&
            header->nlmsg_type == SOCK_DIAG_BY_FAMILY && parse(header, &socket))
            visit(argument, &socket);
    }
    return false;
}

int diag_open(void)
{
    struct timeval patience = {.tv_sec = ANSWER_SECONDS};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);

    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return fd;
}

/* Visits what the kernel answers. 0 or -errno. */
static int ask(int fd, const struct request *request, diag_visitor *visit, void *argument)
{
    _Alignas(struct nlmsghdr) char buffer[32768]; /* as much as the kernel sends at once */
    bool dump = request->header.nlmsg_flags & NLM_F_DUMP;
    struct diag_socket socket;

    if (send(fd, request, sizeof *request, 0) < 0)
        return -errno;
    for (;;) {
        const struct nlmsghdr *header = (const void *)buffer;
        /* The kernel answers before send() returns, all but the rest of a list. */
        ssize_t size = recv(fd, buffer, sizeof buffer, dump ? 0 : MSG_DONTWAIT);

        if (size < 0)
            return -errno;
        for (; NLMSG_OK(header, (size_t)size); header = NLMSG_NEXT(header, size)) {
            if (header->nlmsg_type == NLMSG_DONE)
                return 0;
            if (header->nlmsg_type == NLMSG_ERROR)
                return ((const struct nlmsgerr *)NLMSG_DATA(header))->error;
            if (parse(header, &socket) && !(dump && socket.freed))
                visit(argument, &socket);
        }
        if (!dump)
            return 0;
    }
}

int diag_visit_live(diag_visitor *visit, void *argument)
{
    static const uint8_t families[] = {AF_INET, AF_INET6};
    int fd = diag_open(), result = 0;

    if (fd < 0)
        return fd;
    for (size_t i = 0; i < sizeof families && result == 0; i++) {
        struct request request = {
            .header = {.nlmsg_len = sizeof request,
                       .nlmsg_type = SOCK_DIAG_BY_FAMILY,
                       .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
            .body = {.sdiag_family = families[i],
                     .sdiag_protocol = IPPROTO_TCP,
                     .idiag_ext = 1 << (INET_DIAG_INFO - 1),
                     .idiag_states = LIVE_STATES},
        };

        result = ask(fd, &request, visit, argument);
        if (result == -ENOENT && families[i] == AF_INET6) /* a kernel without IPv6 */
            result = 0;
    }
    close(fd);
    return result;
}

static void note_state(void *argument, const struct diag_socket *socket)
{
    *(int *)argument = socket->state;
}

/* The kernel looks it up by its addresses, and then compares the cookie, which what is left of a
 * socket has from the socket. */
int diag_state_left(const struct diag_socket *socket)
{
    struct request request = {
        .header = {.nlmsg_len = sizeof request,
                   .nlmsg_type = SOCK_DIAG_BY_FAMILY,
                   .nlmsg_flags = NLM_F_REQUEST},
        .body = {.sdiag_family = socket->family,
                 .sdiag_protocol = IPPROTO_TCP,
                 .idiag_states = UINT32_MAX,
                 .id = socket->id},
    };
    int state = 0, fd = diag_open();

    if (fd < 0)
        return 0;
    (void)ask(fd, &request, note_state, &state);
    close(fd);
    return state;
}

static void put_address(const struct mosnhook_address *address, __be32 ip[4], __be16 *port)
{
    struct sockaddr_storage name;

    (void)address_to_socket(address, &name);
    if (name.ss_family == AF_INET) {
        *port = ((struct sockaddr_in *)&name)->sin_port;
        memcpy(ip, &((struct sockaddr_in *)&name)->sin_addr, sizeof(struct in_addr));
    } else {
        *port = ((struct sockaddr_in6 *)&name)->sin6_port;
        memcpy(ip, &((struct sockaddr_in6 *)&name)->sin6_addr, sizeof(struct in6_addr));
    }
}

static void note_socket(void *argument, const struct diag_socket *socket)
{
    *(struct diag_socket *)argument = *socket;
}

/* The kernel also finds a listener at the client's port. */
static bool is_connected(const struct diag_socket *socket, const struct request *request)
{
    return socket->inode != 0 && socket->state != DIAG_LISTEN &&
           socket->id.idiag_sport == request->body.id.idiag_sport &&
           socket->id.idiag_dport == request->body.id.idiag_dport;
}

uint32_t diag_user(int *query, const struct mosnhook_address *client,
                   const struct mosnhook_address *server)
{
    struct diag_socket found = {.inode = 0};
    struct request request = {
        .header = {.nlmsg_len = sizeof request,
                   .nlmsg_type = SOCK_DIAG_BY_FAMILY,
                   .nlmsg_flags = NLM_F_REQUEST},
        .body = {.sdiag_family = address_is_ipv4(server) ? AF_INET : AF_INET6,
                 .sdiag_protocol = IPPROTO_TCP,
                 .idiag_states = UINT32_MAX,
                 .id.idiag_cookie = {INET_DIAG_NOCOOKIE, INET_DIAG_NOCOOKIE}},
    };
    int result;

    if (*query < 0)
        *query = diag_open();
    if (*query < 0)
        return UINT32_MAX;
    put_address(client, request.body.id.idiag_src, &request.body.id.idiag_sport);
    put_address(server, request.body.id.idiag_dst, &request.body.id.idiag_dport);
    result = ask(*query, &request, note_socket, &found);
    if (result < 0 && result != -ENOENT) { /* whatever it still answers is not for the next one */
        close(*query);
        *query = -1;
    }
    return result == 0 && is_connected(&found, &request) ? found.uid : UINT32_MAX;
}
