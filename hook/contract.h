/* Formats shared by the connect hook, the data plane and the control plane.
 *
 * One header, three readers: the hook and the data plane include it, and Python reads it through
 * cffi. So it holds plain types only. All integers are in the machine's own byte order (the three
 * never leave one machine) unless a comment says otherwise; the layouts have no implicit padding.
 *
 * Any change of meaning or layout raises MOSNHOOK_VERSION: a hook that meets another version treats
 * the sidecar as away.
 */
#ifndef MOSNHOOK_CONTRACT_H
#define MOSNHOOK_CONTRACT_H

#include <stdint.h>

enum mosnhook_constants {
    MOSNHOOK_MAGIC = 0x4b48534d, /* "MSHK" */
    MOSNHOOK_VERSION = 3,

    MOSNHOOK_PAGE_SIZE =
        1048576, /* bytes of the policy file; sparse, so unused rules cost nothing */
    MOSNHOOK_MAX_LISTENERS = 16,
    MOSNHOOK_MAX_PARKS = 16,
    MOSNHOOK_MAX_OWN = 64,
    MOSNHOOK_PATH_SIZE = 108,   /* sizeof(sockaddr_un.sun_path) */
    MOSNHOOK_COMMAND_SIZE = 16, /* TASK_COMM_LEN: the kernel's own limit of a command name */
    MOSNHOOK_TICKET_SIZE = 16,

    /* The data plane shows a sign of life this often, and is taken as away after this long without
     * one: long enough for a busy machine, short enough that a stopped sidecar is not a hang. */
    MOSNHOOK_ALIVE_INTERVAL_MS = 200,
    MOSNHOOK_STALE_AFTER_MS = 2000,

    MOSNHOOK_MEMO_MAGIC = 0x4d48534d, /* "MSHM"; another layout has another one */
};

/* An IPv4 or IPv6 endpoint. */
struct mosnhook_address {
    uint8_t ip[16];    /* network order; IPv4 as ::ffff:a.b.c.d */
    uint16_t port;     /* host order */
    uint16_t reserved; /* 0 */
    uint32_t scope_id; /* interface index of a link-local IPv6 address, else 0 */
};

/* ---- Rules: the first rule in file order that matches (address, port), without a linear scan ----
 *
 * A blob: struct mosnhook_rules, then `boundary_count` boundaries, `prefix_count` prefixes and
 * `segment_count` segments, each array directly after the one before.
 *
 * The distinct prefixes of all rules form a forest by containment. `boundaries`, sorted by start,
 * cut the address space into intervals, each with its innermost prefix. From there the parents are
 * followed, and in each prefix the port is looked up in its sorted, disjoint segments, each of
 * which names the first rule of exactly this prefix that matches the port. The smallest rule number
 * met on the way is the first match. A parent always has a smaller index than its child. IPv4
 * (v4-mapped) and IPv6 are separate forests: ::/0 does not match an IPv4 address.
 */
struct mosnhook_rules {
    uint32_t size; /* bytes of the blob, this header included */
    uint32_t boundary_count;
    uint32_t prefix_count;
    uint32_t segment_count;
};

struct mosnhook_boundary {
    uint8_t start[16]; /* the interval reaches from here to the next boundary */
    int32_t prefix;    /* index of the innermost prefix, -1 where there is none */
};

struct mosnhook_prefix {
    int32_t parent; /* index of the next larger prefix that contains this one, or -1 */
    uint32_t first_segment;
    uint32_t segment_count;
};

struct mosnhook_segment {
    uint16_t first_port;
    uint16_t last_port; /* inclusive */
    uint32_t rule;
};

/* ---- The policy page: a file that every hooked process maps read-only ---- */

enum mosnhook_state {
    MOSNHOOK_STATE_STARTING = 0,
    MOSNHOOK_STATE_SERVING = 1,
    MOSNHOOK_STATE_DRAINING = 2, /* takes no new connections: as good as away */
    MOSNHOOK_STATE_GONE = 3,     /* stopped in order; a later sidecar may make a new file */
};

enum mosnhook_transport {
    MOSNHOOK_TRANSPORT_UNIX = 0,
    MOSNHOOK_TRANSPORT_HEADER = 1,
};

enum mosnhook_when_away {
    MOSNHOOK_AWAY_REFUSE = 0,
    MOSNHOOK_AWAY_DIRECT = 1,
    MOSNHOOK_AWAY_WAIT = 2, /* up to wait_ms, then refuse */
};

/* The rule numbers of the page's rules carry the verdict in their two lowest bits. */
enum mosnhook_verdict {
    MOSNHOOK_CAPTURE = 0, /* also where no rule matches */
    MOSNHOOK_EXCLUDE = 1,
    MOSNHOOK_ASK = 2, /* captured, but the sidecar may say `direct`: see mosnhook_request */
    MOSNHOOK_VERDICTS = 4,
};

/* `sequence` is a seqlock over everything but `alive_ns`, `accelerates`, `elsewhere` and `full`:
 * odd while the control plane writes. It starts at a random even number, so that a page that
 * replaces another one under a reader's eyes never looks like the same one. A reader that meets an
 * odd number (a writer killed half-way) gives up after a bounded number of tries and takes the
 * sidecar as away.
 */
struct mosnhook_page {
    uint32_t magic;
    uint32_t version;
    uint32_t sequence;
    uint32_t state; /* enum mosnhook_state */
    /* CLOCK_MONOTONIC in nanoseconds of the last sign of life; the data plane's, atomic. */
    uint64_t alive_ns;
    uint32_t transport; /* enum mosnhook_transport */
    uint32_t when_away; /* enum mosnhook_when_away */
    uint32_t wait_ms;
    uint32_t listener_count;
    uint32_t park_count;
    uint32_t own_count;
    char control_path[MOSNHOOK_PATH_SIZE]; /* NUL-terminated; "" without a control socket */
    uint32_t accelerates; /* the data plane's: data may be redirected to applications */
    /* The data plane's: some captured sockets are connected elsewhere than to the listeners and
     * parks below (direct connections, MPTCP), so that only their memo tells them. */
    uint32_t elsewhere;
    uint32_t server_uid; /* whose the listeners are: nobody else is sent anything */
    /* Random, of this start of the sidecar. Who can read the page may be served: a header with it
     * is heeded also when its sender has closed already, and the kernel knows no user any more. */
    uint8_t ticket[MOSNHOOK_TICKET_SIZE];
    /* The data plane's, atomic: it is out of descriptors. As good as away, from when only so many
     * are left as requests that are on their way may need. */
    uint32_t full;
    uint32_t reserved; /* 0 */
    /* Where PROXY v2 connections are accepted. */
    struct mosnhook_address listeners[MOSNHOOK_MAX_LISTENERS];
    /* Where a socket waits in SYN_SENT for its upstream (see mosnhook_request). */
    struct mosnhook_address parks[MOSNHOOK_MAX_PARKS];
    /* The sidecar's other listeners (admin), which are never captured. */
    struct mosnhook_address own[MOSNHOOK_MAX_OWN];
    struct mosnhook_rules rules; /* the rest of the file belongs to its arrays */
};

/* ---- The memo: what a captured socket remembers ----
 *
 * It is kept by the kernel, in the socket itself, as its TCP_FASTOPEN_KEY: 32 bytes that anybody
 * may set and read, and that only listeners use. So it is there wherever the socket is: after dup,
 * fork, exec and SCM_RIGHTS, in any number. The hook writes it when it captures the socket; before
 * a non-blocking connect fails, the sidecar writes the true errno. Kernels before 5.3 know keys of
 * 16 bytes only: there is no memo there.
 *
 * Whoever has the socket can write it: see hook/memo.c for when it is believed.
 */
enum mosnhook_memo_kind {
    MOSNHOOK_MEMO_NONE = 0,    /* it was captured, but was disconnected since */
    MOSNHOOK_MEMO_RELAYED = 1, /* connected to the sidecar */
    MOSNHOOK_MEMO_DIRECT = 2,  /* connected by itself to an endpoint that the sidecar chose */
};

struct mosnhook_memo {
    uint32_t magic;                      /* MOSNHOOK_MEMO_MAGIC */
    uint16_t kind;                       /* enum mosnhook_memo_kind */
    uint16_t error;                      /* errno with which the connect failed, 0: it has not */
    struct mosnhook_address destination; /* the application's */
};

/* ---- The control socket (SOCK_SEQPACKET): one request, at most one answer, then closed ----
 *
 * Asking. Where the page says MOSNHOOK_ASK, a first request carries the socket as it is, neither
 * parked nor connected, and is answered at once, whether its caller waits or not. After `direct`
 * the application's socket is connected by its own connect() to the endpoint in the answer, and the
 * sidecar is not in the way of its bytes. After `relay` the same connection of the control socket
 * takes the ordinary request, as follows. A caller that does not wait longer for the answer shuts
 * its receiving direction down, looks once more whether it has come, and if not sends the ordinary
 * request, too: the sidecar's answer has failed, or will (EPIPE), so that both know it was none.
 *
 * Parking. The application's socket S is connected, non-blocking, to a park: a listener that
 * drops every SYN, so that S stays in SYN_SENT, as it would while a distant server has not answered
 * yet. The request carries S (SCM_RIGHTS). When the upstream is connected, the
 * sidecar binds a socket to the park's address and connects it to S: a TCP simultaneous open (RFC
 * 9293, figure 7), after which S is established in the same instant. So a non-blocking application
 * sees writability exactly when the upstream is there, SO_ERROR when it is not, and no accept queue
 * is involved.
 *
 * A socket that cannot be parked (MPTCP has no simultaneous open) is sent unconnected. The answer,
 * for which all callers wait, says where the caller connects it to the sidecar: to callers that
 * want to wait it comes when the upstream is connected, to others at once.
 */
enum mosnhook_request_flags {
    MOSNHOOK_WAITS = 1,  /* the caller blocks until the answer */
    MOSNHOOK_PARKED = 2, /* the socket is parked (else: unconnected) */
    MOSNHOOK_ASKS = 4,   /* only asks; the socket is unconnected */
};

struct mosnhook_request {
    uint32_t magic;
    uint16_t version;
    uint16_t flags; /* enum mosnhook_request_flags */
    struct mosnhook_address destination;
    char command[MOSNHOOK_COMMAND_SIZE]; /* the process's command name, NUL-padded */
};

enum mosnhook_action {
    /* The socket is connected: to the sidecar, and the sidecar to the upstream. To one who asks: it
     * is to be handed over. */
    MOSNHOOK_RELAY = 0,
    MOSNHOOK_DIRECT = 1,  /* connect it yourself, to the endpoint */
    MOSNHOOK_REFUSE = 2,  /* fail with `error` */
    MOSNHOOK_CONNECT = 3, /* connect it yourself, to the sidecar at `endpoint` (unparked sockets) */
    MOSNHOOK_AWAY = 4,    /* the sidecar is out of something: do what `when_away` says */
};

/* Sent only to callers that wait, ask or have no parked socket. A failed socket is left to the
 * caller to disconnect. */
struct mosnhook_answer {
    uint32_t magic;
    uint16_t version;
    uint16_t action; /* enum mosnhook_action */
    int32_t error;   /* errno for MOSNHOOK_REFUSE, else 0 */
    /* For MOSNHOOK_DIRECT (port 0: the destination) and MOSNHOOK_CONNECT. */
    struct mosnhook_address endpoint;
};

/* ---- TLVs of the PROXY v2 header that the `header` transport sends ----
 *
 * Types 0xE0-0xEF are reserved for applications by the PROXY protocol (section 2.2.7). Integers are
 * 4 bytes in network order. The user is nobody's to tell but the kernel's. */
enum mosnhook_tlv {
    MOSNHOOK_TLV_PID = 0xE0,
    MOSNHOOK_TLV_COMMAND = 0xE2,  /* bytes, without a NUL */
    MOSNHOOK_TLV_SCOPE_ID = 0xE3, /* of a link-local destination */
    MOSNHOOK_TLV_TICKET = 0xE4,   /* the page's, as it is there */
};

#endif
