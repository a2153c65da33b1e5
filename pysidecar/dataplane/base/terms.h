/* The enums and settings that Python and C share. cffi reads this file, so it has declarations
 * only. */
#ifndef PYSIDECAR_BASE_TERMS_H
#define PYSIDECAR_BASE_TERMS_H

#include <stdint.h>

#include "contract.h"

/* How a connection reached us, and with it how it says where it wanted to go. */
enum dp_transport {
    DP_TRANSPORT_UNIX = 0,     /* a request of the connect hook on the control socket */
    DP_TRANSPORT_HEADER = 1,   /* a PROXY v2 header */
    DP_TRANSPORT_REDIRECT = 2, /* netfilter REDIRECT: SO_ORIGINAL_DST */
    DP_TRANSPORT_TPROXY = 3,   /* netfilter TPROXY: the accepted socket's own address */
};

enum dp_direction {
    DP_OUTBOUND = 0,
    DP_INBOUND = 1,
};

/* The tables that dp_set_routes replaces are numbered by direction; this is one more. Outbound
 * connections to a loopback destination that matches any of its routes are refused. */
enum { DP_EXCLUDED = 2 };

enum dp_action {
    DP_RELAY = 0,
    DP_REFUSE = 1,
    /* The application connects to the endpoint itself. Falls back to a relay where it cannot. */
    DP_DIRECT = 2,
};

/* The way of a connection's bytes. */
enum dp_path {
    DP_PATH_RELAY = 0, /* through the data plane */
    DP_PATH_LOCAL = 1, /* the same, with a short cut between application and data plane */
    DP_PATH_FULL = 2,  /* from the application's socket to the upstream's and back, in the kernel */
    DP_PATH_DIRECT = 3, /* the application is connected to the upstream itself */
};

enum dp_balance {
    DP_ROUND_ROBIN = 0,
    DP_LEAST_CONNECTIONS = 1,
};

/* Why a connection ended. Everything but DP_END_EOF is an error in the access log. */
enum dp_end {
    DP_END_NONE = 0,         /* still open */
    DP_END_EOF,              /* both directions closed in order */
    DP_END_REFUSED_BY_ROUTE, /* a route says refuse */
    DP_END_UPSTREAM_CONNECT, /* no endpoint could be connected; error is the errno of the last one
                              */
    DP_END_UPSTREAM_TIMEOUT, /* no endpoint answered within the connect timeout */
    DP_END_DOWNSTREAM_RESET, /* the application's side aborted */
    DP_END_UPSTREAM_RESET,   /* the upstream aborted */
    DP_END_IDLE_TIMEOUT,
    DP_END_HEADER_TIMEOUT,    /* PROXY header or control request not complete in time */
    DP_END_HEADER_TRUNCATED,  /* closed before the header was complete */
    DP_END_HEADER_MALFORMED,  /* not a PROXY v2 header, or a wrong request */
    DP_END_HEADER_NO_ADDRESS, /* PROXY v2 LOCAL or UNSPEC: no original destination */
    DP_END_LOOP, /* the original destination is one of our own listeners, or the connection came
                    straight to us without having been redirected */
    DP_END_DOWNSTREAM_GONE, /* the application gave its socket up before the upstream answered */
    DP_END_NO_RESOURCES,    /* out of fds, ports or memory; error says which */
    DP_END_DRAIN_LIMIT,     /* still open when the drain limit was reached */
    DP_END_UNOBSERVED,      /* a direct connection that ended while the kernel's events were lost */
    DP_END_LEFT,   /* a direct connection that was open when the data plane stopped, and goes on */
    DP_END_DENIED, /* its user may not use the listener, see dp_set_clients */
    DP_END_TOO_MANY_WAIT,   /* too many connections of its user have not said yet what they want */
    DP_END_EXCLUDED,        /* the destination is on our loopback, and excluded from capture */
    DP_END_OTHER_NAMESPACE, /* the application's loopback is not ours */
};

/* Settings that all connections of a listener share. */
struct dp_listener {
    uint32_t transport; /* enum dp_transport */
    uint32_t direction; /* enum dp_direction: also which route table */
    uint32_t mark;      /* SO_MARK of the upstream sockets, 0 for none (needs CAP_NET_ADMIN) */
    /* Source of connections to the application (on loopback, or at the original destination's
     * address): the client's address, or else application_source, by the application's family (0:
     * IPv4, 1: IPv6; all zero: the kernel picks one). The port differs. Either needs
     * IP_TRANSPARENT, and such a socket has application_mark in place of mark. The client's address
     * is preserved only on loopback, from where rules bring the answers back; elsewhere such a
     * connection would be mistaken for the client's own. */
    uint32_t preserve_source;
    uint32_t application_mark;
    struct mosnhook_address application_source[2];
    /* Replaces the address (not the port) of original destinations, unless all zero. */
    struct mosnhook_address application;
};

/* A route. The rule numbers of struct mosnhook_rules index these. */
struct dp_route {
    /* Identifies the route from one table to the next: it goes on with its turns (round robin),
     * wherever it stands and whatever else has changed. */
    uint64_t key;
    uint32_t action;         /* enum dp_action */
    uint32_t balance;        /* enum dp_balance */
    uint32_t first_endpoint; /* index into the endpoints */
    uint32_t endpoint_count; /* 0: the original destination */
};

/* When a connection's bytes take a shorter path, and which one. */
struct dp_acceleration {
    uint32_t path;             /* DP_PATH_FULL or DP_PATH_LOCAL */
    uint32_t blocking_sockets; /* also accelerate applications that block in recv() */
    uint32_t after_round_trips;
    uint32_t connections; /* at a time, at least 1; others are relayed */
    uint64_t after_bytes; /* in both directions together */
};

enum {
    DP_REASON_SIZE = 256,
    DP_ADMIN_CONNECTIONS = 128, /* descriptors that are left for them */
};

/* Milliseconds, each at least 1 unless stated otherwise. */
struct dp_timeouts {
    uint32_t connect_ms;  /* for each endpoint */
    uint32_t idle_ms;     /* without a byte in either direction */
    uint32_t header_ms;   /* for the whole PROXY header or control request */
    uint32_t ejection_ms; /* of an endpoint after a failed connect; 0: none is ejected */
};

#endif
