/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the data plane and its BPF programs share: one record for each accelerated connection, in a
 * memory-mapped array. Compiled into both, so it has plain types only.
 *
 * A connection has three sockets: the application's, our downstream socket (its peer) and our
 * upstream socket. Each is in a sockhash under a key that is never used twice, so a stale reference
 * finds nothing. */
#ifndef PYSIDECAR_DATAPLANE_BPF_RECORD_H
#define PYSIDECAR_DATAPLANE_BPF_RECORD_H

#include <linux/types.h>

enum {
    KEYS_PER_CONNECTION = 4,
    CACHE_LINE = 64,
};

/* Which of a connection's sockets. Its key is id * KEYS_PER_CONNECTION + this. */
enum role {
    ROLE_APPLICATION = 0,
    ROLE_DOWNSTREAM = 1,
    ROLE_UPSTREAM = 2,
};

/* The addresses of a socket and of its peer, in network order; IPv4 in the first word. */
struct tuple {
    __u32 local_ip[4];
    __u32 remote_ip[4];
    __u16 local_port;
    __u16 remote_port;
    __u32 is_ipv6;
};

struct record {
    /* ---- written by the worker ---- */
    __u64 id;        /* the connection's; 0: nothing is redirected any more */
    __u64 forwarded; /* bytes that came from the application by TCP and were sent to the upstream */
    __u32 window;    /* bytes that may wait where data is redirected to; 0: redirects nothing */
    __u32 local;     /* the application's data goes to our downstream socket, not to the upstream */
    __u32 hold;      /* our downstream's data takes TCP: the application does not keep up */
    __u32 blocking;  /* attach sockets that block, too */
    struct tuple downstream, upstream; /* of our sockets */

    /* ---- written by the programs ---- */
    __u64 redirected[2]
        __attribute__((aligned(CACHE_LINE))); /* bytes: from the application, to it */
    __u32 queued; /* redirected bytes that wait for the application, as of the last send or probe */
    __u32 unread; /* bytes on the way to the application by TCP, as of the last probe */
    __u32 arrived;     /* redirected bytes that wait for us, as of the last probe */
    __u32 nodelay;     /* the application's TCP_NODELAY */
    __u32 attached_at; /* our downstream socket's write_seq when it was attached */
} __attribute__((aligned(CACHE_LINE)));

/* What `attach`, `join` and `probe` answer. */
enum answer {
    ANSWER_OK = 1,
    ANSWER_NO_SOCKET = 2,  /* the application's socket is not on this host, or not connected */
    ANSWER_NOT_SUITED = 3, /* its kind cannot be redirected (kTLS, MPTCP, …) */
    ANSWER_ENDED = 4,      /* a direction has ended: the kernel takes no such sockets */
};

#endif
