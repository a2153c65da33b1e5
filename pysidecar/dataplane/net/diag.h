/* What the kernel says of TCP sockets that are not ours: NETLINK_SOCK_DIAG, as ss(8) asks it. Needs
 * no privilege; speaks of one network namespace. */
#ifndef PYSIDECAR_NET_DIAG_H
#define PYSIDECAR_NET_DIAG_H

#include <linux/inet_diag.h>
#include <stdbool.h>

#include "base/sockaddr.h"

/* enum tcp_state of netinet/tcp.h, which cannot be included together with linux/tcp.h. */
enum { DIAG_FIN_WAIT2 = 5, DIAG_TIME_WAIT = 6, DIAG_LISTEN = 10 };

struct diag_socket {
    uint64_t cookie; /* SO_COOKIE */
    uint8_t family, state;
    bool freed; /* what the kernel keeps of it in FIN_WAIT2 and TIME_WAIT */
    struct inet_diag_sockid id;
    struct mosnhook_address source;
    uint32_t uid, inode;    /* its user; 0: no process has it any more, and the uid says nothing */
    uint32_t unread;        /* bytes, where the peer's FIN counts as one */
    uint32_t unacked;       /* sequence numbers: 0 if no connect ever sent a SYN */
    uint32_t segments_sent; /* forgotten, as bytes are, by a socket that was disconnected */
    uint32_t segments_received;
    uint64_t bytes_sent;     /* without what was sent again */
    uint64_t bytes_received; /* a FIN counts as one */
    uint64_t bytes_acked;    /* SYN and FIN count as one each */
    uint32_t last_ack_ms;    /* ago */
    uint32_t rtt_us;
};

typedef void diag_visitor(void *argument, const struct diag_socket *socket);

/* A non-blocking socket that gets an event for each TCP socket that the kernel frees, or -errno. */
int diag_subscribe(void);
/* Visits some of the events that came, and says whether that was all. `*lost`: events had no room.
 * Until all was read, the kernel does not say so again. */
bool diag_read_events(int fd, diag_visitor *visit, void *argument, bool *lost);
/* Visits all TCP sockets of the namespace that are connecting or connected. 0 or -errno. */
int diag_visit_live(diag_visitor *visit, void *argument);
/* A socket for questions, or -errno. */
int diag_open(void);
/* The user whose socket is connected from `client` to `server`; UINT32_MAX if there is none in this
 * namespace, or its process is gone. `*query` is made anew when that is necessary. */
uint32_t diag_user(int *query, const struct mosnhook_address *client,
                   const struct mosnhook_address *server);
/* What diag_visit_live tells, of a socket that is at hand, as far as it matters for whether it was
 * connected. */
void diag_of_fd(int fd, struct diag_socket *socket);
/* The state of what the kernel keeps of a freed socket: DIAG_FIN_WAIT2, DIAG_TIME_WAIT, or 0. */
int diag_state_left(const struct diag_socket *socket);

#endif
