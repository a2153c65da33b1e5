/* Who has the other end of a connection to one of the sidecar's listeners. Ports belong to nobody:
 * once a sidecar was killed, any user of the host may listen where the page still says that it
 * does.
 *
 * We ask the kernel (sock_diag(7)) about this very connection: no other answer would still hold
 * when something is sent. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include "mosnhook.h"
#include "sys.h"

enum {
    ASK_END,       /* the other end of the connection */
    ASK_LISTENER,  /* who listens there */
    ASK_END_AGAIN, /* after that */
    QUESTIONS,
};

struct question {
    struct nlmsghdr header;
    struct inet_diag_req_v2 request;
};

struct answer {
    struct nlmsghdr header;
    struct inet_diag_msg socket;
};

static void put_address(__be32 to[4], const struct mosnhook_address *address, bool ipv4)
{
    if (ipv4)
        __builtin_memcpy(to, address->ip + 12, 4);
    else
        __builtin_memcpy(to, address->ip, 16);
}

/* Asks about the socket at `there` that is connected to `here`, or, if there is none, listens. */
static struct question question_about(uint32_t number, const struct mosnhook_address *there,
                                      const struct mosnhook_address *here, uint16_t port_here)
{
    bool ipv4 = address_is_ipv4(there);
    struct question question = {
        .header = {.nlmsg_len = sizeof question,
                   .nlmsg_type = SOCK_DIAG_BY_FAMILY,
                   .nlmsg_flags = NLM_F_REQUEST,
                   .nlmsg_seq = number},
        .request = {.sdiag_family = ipv4 ? AF_INET : AF_INET6,
                    .sdiag_protocol = IPPROTO_TCP,
                    .id = {.idiag_sport = htons(there->port),
                           .idiag_dport = htons(port_here),
                           .idiag_cookie = {INET_DIAG_NOCOOKIE, INET_DIAG_NOCOOKIE}}},
    };

    put_address(question.request.id.idiag_src, there, ipv4);
    put_address(question.request.id.idiag_dst, here, ipv4);
    return question;
}

struct inquiry {
    const struct question *questions;
    struct answer *answers;
    int result;
};

/* Asks everything at once; the kernel has answered, in order, when the call returns. A missing
 * answer is all zero. 0 or -errno. */
static int ask_on(int fd, const struct question questions[QUESTIONS],
                  struct answer answers[QUESTIONS])
{
    long sent = sys_sendto(fd, questions, QUESTIONS * sizeof *questions, MSG_DONTWAIT, NULL, 0);

    for (uint32_t i = 0; sent > 0 && i < QUESTIONS; i++) {
        struct answer *answer = &answers[i];
        long size = sys_recv(fd, answer, sizeof *answer, MSG_DONTWAIT);

        if (size != sizeof *answer || answer->header.nlmsg_type != SOCK_DIAG_BY_FAMILY ||
            answer->header.nlmsg_seq != i)
            *answer = (struct answer){.socket = {.idiag_state = 0}};
    }
    sys_close(fd);
    return sent < 0 ? (int)sent : 0;
}

static void ask_here(void *argument)
{
    struct inquiry *inquiry = argument;
    int fd = sys_socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);

    inquiry->result = fd < 0 ? fd : ask_on(fd, inquiry->questions, inquiry->answers);
}

/* 0 or -errno: there is no sock_diag, a sandbox does not allow it, or no descriptor is left. */
static int ask(const struct question questions[QUESTIONS], struct answer answers[QUESTIONS])
{
    struct inquiry inquiry = {.questions = questions, .answers = answers, .result = -EMFILE};
    int fd = socket_open(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG);

    if (fd >= 0)
        return ask_on(fd, questions, answers);
    if (fd != -EMFILE)
        return fd;
    apart(-1, ask_here, &inquiry);
    return inquiry.result;
}

/* Root may read whatever is sent anyway; and a proxy in the sidecar's place may have opened its
 * listener as root, before it became another user. */
static bool is_trusted(const struct attempt *attempt, const struct answer *answer)
{
    return answer->socket.idiag_uid == 0 || answer->socket.idiag_uid == attempt->view.server_uid;
}

static bool is_accepted(const struct answer *answer)
{
    return answer->socket.idiag_state == TCP_ESTABLISHED && answer->socket.idiag_inode != 0;
}

/* A connection that waits to be accepted is the listener's, and goes with it. (Kernels before 6.17
 * call it root's then.) */
static bool is_waiting(const struct answer *answer)
{
    return answer->socket.idiag_state == TCP_ESTABLISHED && answer->socket.idiag_inode == 0;
}

int server_check(const struct attempt *attempt, const struct mosnhook_address *here)
{
    struct sockaddr_storage name = {.ss_family = AF_UNSPEC};
    socklen_t length = sizeof name;
    struct mosnhook_address there;
    struct question questions[QUESTIONS];
    struct answer answers[QUESTIONS];
    const struct answer *end = &answers[ASK_END], *listener = &answers[ASK_LISTENER];
    int result;

    if (sys_getpeername(attempt->fd, &name, &length) < 0)
        return socket_take_error(attempt->fd) ? OUTCOME_AWAY : EAGAIN;
    if (!address_from_sockaddr((struct sockaddr *)&name, length, &there))
        return OUTCOME_AWAY;
    questions[ASK_END] = question_about(ASK_END, &there, here, here->port);
    questions[ASK_LISTENER] = question_about(ASK_LISTENER, &there, here, 0);
    questions[ASK_END_AGAIN] = question_about(ASK_END_AGAIN, &there, here, here->port);
    result = ask(questions, answers);
    if (result == -ENFILE) /* while the system is out of files, nobody can accept it */
        return EAGAIN;
    if (result < 0)
        return result == -EMFILE ? EMFILE : OUTCOME_AWAY;
    if (end->socket.idiag_state == TCP_LISTEN || end->socket.idiag_state == TCP_SYN_RECV)
        return EAGAIN;
    if (is_waiting(end) && is_waiting(&answers[ASK_END_AGAIN]))
        return listener->socket.idiag_state == TCP_LISTEN && is_trusted(attempt, listener)
                   ? 0
                   : OUTCOME_AWAY;
    if (is_waiting(end))
        end = &answers[ASK_END_AGAIN];
    return is_accepted(end) && is_trusted(attempt, end) ? 0 : OUTCOME_AWAY;
}
