/* What the kernel knows of TCP sockets that are not ours: NETLINK_SOCK_DIAG, which ss(8) uses. It
 * needs no privilege, and covers one network namespace. */
#ifndef PYSIDECAR_NET_DIAG_H
#define PYSIDECAR_NET_DIAG_H

#include <linux/inet_diag.h>
#include <stdbool.h>

#include "base/sockaddr.h"

/* Of netinet/tcp.h, which cannot be included together with linux/tcp.h. */
enum { DIAG_FIN_WAIT2 = 5, DIAG_TIME_WAIT = 6, DIAG_LISTEN = 10 };

struct diag_socket {
    uint64_t cookie; /* SO_COOKIE */
    uint8_t family, state;
    bool freed; /* only what the kernel keeps in FIN_WAIT2 and TIME_WAIT is left */
    struct inet_diag_sockid id;
    struct mosnhook_address source;
    uint32_t uid, inode;    /* inode 0: no process has it any more, and the uid says nothing */
    uint32_t unread;        /* bytes; the peer's FIN counts as one */
    uint32_t unacked;       /* sequence numbers; 0 if no connect ever sent a SYN */
    uint32_t segments_sent; /* lost, as the byte counts are, when a socket is disconnected */
    uint32_t segments_received;
    uint64_t bytes_sent;     /* without retransmissions */
    uint64_t bytes_received; /* a FIN counts as one */
    uint64_t bytes_acked;    /* SYN and FIN count as one each */
    uint32_t last_ack_ms;    /* ago */
    uint32_t rtt_us;
};

typedef void diag_visitor(void *argument, const struct diag_socket *socket);

/* Opens a non-blocking socket that gets an event for each TCP socket that the kernel frees. -errno
 * on failure. */
int diag_subscribe(void);
/* Visits some of the events that came; true if those were all. Sets `*lost` when events had no
 * room: the kernel says that once until all were read. */
bool diag_read_events(int fd, diag_visitor *visit, void *argument, bool *lost);
/* Visits the TCP sockets of the namespace that are connecting or connected. 0 or -errno. */
int diag_visit_live(diag_visitor *visit, void *argument);
/* Opens a socket for queries. -errno on failure. */
int diag_open(void);
/* The user whose socket is connected from `client` to `server`; UINT32_MAX if there is none in this
 * namespace, or no process has it any more. Opens `*query`, a socket of diag_open, where necessary.
 */
uint32_t diag_user(int *query, const struct mosnhook_address *client,
                   const struct mosnhook_address *server);
/* Describes a socket that is at hand, as far as it matters for whether it was ever connected. */
void diag_of_fd(int fd, struct diag_socket *socket);
/* The state of what the kernel keeps of a freed socket: DIAG_FIN_WAIT2, DIAG_TIME_WAIT, or 0 for
 * nothing. */
int diag_state_left(const struct diag_socket *socket);

#endif
