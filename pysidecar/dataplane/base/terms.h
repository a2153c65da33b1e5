/* The terms of the data plane, which Python and C share: what connections, listeners and routes are
 * told apart by. cffi reads this file, so there is nothing in it but declarations. */
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
    DP_TRANSPORT_LISTENER =
        4, /* a client connects to a listener of ours by itself, for a service */
};

enum dp_direction {
    DP_OUTBOUND = 0,
    DP_INBOUND = 1,
};

enum { DP_DIRECTIONS = 2 };

/* What dp_set_routes replaces: the routes of a direction, by its number, or this, which is none of
 * them. A destination on loopback that matches any route of it is refused to outbound connections.
 */
enum { DP_EXCLUDED = 2 };

enum dp_action {
    DP_RELAY = 0,
    DP_REFUSE = 1,
    /* The application connects itself to the endpoint. Of a connection for which that is no way, a
     * relay. */
    DP_DIRECT = 2,
    /* What the connection carries is read request by request, and each goes its own way. */
    DP_REQUESTS = 3,
};

/* What a connection, a listener or a service speaks. */
enum dp_protocol {
    DP_TCP = 0, /* bytes */
    DP_HTTP1 = 1,
    DP_BOLT = 2,
    DP_DUBBO = 3,
    DP_HTTP2 = 4,
    DP_GRPC = 5, /* HTTP/2, for gRPC; of a request: it is a call of that */
    DP_AUTO = 6, /* of routes and listeners: found out by the first bytes */
};

enum { DP_PROTOCOLS = 7 };

/* What happened to a request: bits of a record's flags, and indices of counters. Everything from
 * DP_FLAG_NO_ROUTE to DP_FLAG_DOWNSTREAM_CLOSED is a failure; at most one of them is set. */
enum dp_flag {
    DP_FLAG_NONE = 0,
    DP_FLAG_NO_ROUTE,        /* no rule matches, and there is no original destination */
    DP_FLAG_NO_ENDPOINT,     /* the service has none */
    DP_FLAG_CONNECT_FAILED,  /* no endpoint could be connected */
    DP_FLAG_CONNECT_TIMEOUT, /* no endpoint answered within the connect timeout */
    DP_FLAG_TIMEOUT,         /* no complete answer within the request's timeout */
    DP_FLAG_UPSTREAM_RESET,  /* the upstream closed or reset the connection before its answer was
                              * complete */
    DP_FLAG_OVERLOAD,        /* a limit of the service's pool, or of memory */
    DP_FLAG_MALFORMED_REQUEST,
    DP_FLAG_MALFORMED_RESPONSE,
    DP_FLAG_REFUSED,           /* a request that we do not serve, such as CONNECT */
    DP_FLAG_LOOP,              /* its endpoint is one of our own listeners */
    DP_FLAG_RATE_LIMITED,      /* the service gets too many in a time */
    DP_FLAG_FAULT_ABORT,       /* its rule makes some requests fail */
    DP_FLAG_DRAIN_LIMIT,       /* still under way when the drain limit was reached */
    DP_FLAG_DOWNSTREAM_CLOSED, /* the client gave up before it had its answer */
    DP_FLAG_RETRIED,           /* was sent again after a failure */
    DP_FLAG_SERVICE_ERROR,     /* the service answered with an exception of its own */
    DP_FLAG_UPGRADED,          /* went on as a tunnel */
    DP_FLAG_RETRY_LIMITED,     /* would have been sent again, but too many are already */
    DP_FLAG_RETRY_UNKEPT,   /* would have been sent again, but its body is too large to be kept */
    DP_FLAG_HEDGED,         /* was sent to a second endpoint before the first one answered */
    DP_FLAG_MIRRORED,       /* a copy of it went to another service */
    DP_FLAG_FAULT_DELAY,    /* its rule holds some requests */
    DP_FLAG_LIMIT_PENDING,  /* with overload: as many as may wait for a connection */
    DP_FLAG_LIMIT_REQUESTS, /* with overload: as many as may be under way */
    DP_FLAG_PANIC,          /* any endpoint was picked, as too few are available */
    DP_FLAG_UNAVAILABLE,    /* with DP_FLAG_NO_ENDPOINT: there are some, but none is available */
    DP_FLAG_OTHER_ZONE,     /* went to an endpoint that is not in the preferred zone */
    DP_FLAG_EJECTED,        /* its failure ejected the endpoint */
    DP_FLAG_NOT_TAKEN,      /* with DP_FLAG_DOWNSTREAM_CLOSED: it did not take its answer */
};

enum { DP_FLAGS = 31 }; /* room for enum dp_flag */

/* The way that a connection's bytes take. */
enum dp_path {
    DP_PATH_RELAY = 0, /* through the data plane */
    DP_PATH_LOCAL = 1, /* the same, with a short cut between application and data plane */
    DP_PATH_FULL = 2,  /* from the application's socket to the upstream's and back, in the kernel */
    DP_PATH_DIRECT = 3, /* the application is connected to the upstream itself */
};

enum dp_balance {
    DP_ROUND_ROBIN = 0,
    DP_LEAST_CONNECTIONS = 1,
    /* The following are for services, whose endpoints have weights. */
    DP_RANDOM = 2,
    DP_LEAST_REQUESTS = 3,
    DP_RING_HASH = 4, /* by a header of the request, see dp_service */
    DP_MAGLEV = 5,    /* likewise */
    DP_PEAK_EWMA = 6, /* by how long answers took lately */
};

/* Why a connection ended. Everything but DP_END_EOF is an error in the access log. */
enum dp_end {
    DP_END_NONE = 0,         /* still open */
    DP_END_EOF,              /* both directions closed in order */
    DP_END_REFUSED_BY_ROUTE, /* a route says refuse */
    DP_END_UPSTREAM_CONNECT, /* no endpoint could be connected; error is the last one's errno */
    DP_END_UPSTREAM_TIMEOUT, /* no endpoint answered within the connect timeout */
    DP_END_DOWNSTREAM_RESET, /* the application's side aborted */
    DP_END_UPSTREAM_RESET,   /* the upstream aborted */
    DP_END_IDLE_TIMEOUT,
    DP_END_HEADER_TIMEOUT,    /* PROXY header or control request not complete in time */
    DP_END_HEADER_TRUNCATED,  /* closed before the header was complete */
    DP_END_HEADER_MALFORMED,  /* not a PROXY v2 header, or a wrong request */
    DP_END_HEADER_NO_ADDRESS, /* PROXY v2 LOCAL or UNSPEC: no original destination */
    DP_END_LOOP,              /* the original destination is one of our own listeners, or the
                               * connection was not redirected to us but came by itself */
    DP_END_DOWNSTREAM_GONE,   /* the application gave its socket up before the upstream answered */
    DP_END_NO_RESOURCES,      /* out of fds, ports or memory; error says which */
    DP_END_DRAIN_LIMIT,       /* still open when the drain limit was reached */
    DP_END_UNOBSERVED, /* a direct connection that ended while the kernel's reports were lost */
    DP_END_LEFT,       /* a direct connection that was open when the data plane stopped: goes on */
    DP_END_DENIED,     /* its user may not use the listener: see dp_set_clients */
    DP_END_TOO_MANY_WAIT,   /* so many connections of its user have not said what they want */
    DP_END_EXCLUDED,        /* a destination on our loopback that is not to be captured */
    DP_END_OTHER_NAMESPACE, /* the application's loopback is another one than ours */
    DP_END_TOO_MANY_FDS,    /* its user has too many of the descriptors: the rest is for others */
    DP_END_UNDETECTED,      /* its first bytes are of no protocol that is understood */
};

/* A side of a connection. */
enum dp_side {
    DP_SIDE_DOWNSTREAM = 0, /* the application's; inbound, the client's */
    DP_SIDE_UPSTREAM = 1,
};

/* What has a time limit. */
enum dp_timer {
    DP_TIMER_REQUEST = 0,  /* for a request or header to be complete */
    DP_TIMER_CONNECT = 1,  /* for an endpoint to answer */
    DP_TIMER_COMPLETE = 2, /* for the application's socket to be connected to us */
    DP_TIMER_FAIL = 3,     /* for the application's socket to have failed */
    DP_TIMER_IDLE = 4,     /* for a byte */
    DP_TIMER_DETECT = 5,   /* for the first bytes to tell the protocol */
    DP_TIMER_ANSWER = 6,   /* for a request to be answered */
};

/* See dp_set_routes. */
enum dp_table {
    DP_TABLE_OUTBOUND = DP_OUTBOUND,
    DP_TABLE_INBOUND = DP_INBOUND,
    DP_TABLE_EXCLUDED = DP_EXCLUDED,
};

/* Kinds of a trace event's numbers (see base/trace.h): values of the enum dp_… of the same name, if
 * there is one. */
enum dp_kind {
    DP_KIND_NONE = 0, /* unused */
    DP_KIND_NUMBER,
    DP_KIND_FLAG,    /* 0 or 1 */
    DP_KIND_ERRNO,   /* 0: none */
    DP_KIND_ROUTE,   /* its index, UINT32_MAX for none */
    DP_KIND_ADDRESS, /* both numbers: the IP address, as in struct mosnhook_address; third: port */
    DP_KIND_COMMAND, /* both numbers: the process's name, NUL-padded; third: pid, 0 if unknown */
    DP_KIND_TRANSPORT,
    DP_KIND_DIRECTION,
    DP_KIND_ACTION,
    DP_KIND_PATH,
    DP_KIND_END,
    DP_KIND_SIDE,
    DP_KIND_TIMER,
    DP_KIND_TABLE,
    DP_KIND_FAILURE, /* enum dp_flag */
};

/* A trace event: what happened to a connection, or to a worker. */
struct dp_trace_event {
    uint64_t time_ns; /* CLOCK_MONOTONIC */
    uint64_t session; /* the id of its record; 0 for none */
    uint64_t first, second;
    uint32_t third;
    uint16_t station; /* index into dp_trace_stations */
    uint16_t worker;
};

struct dp_trace_station {
    const char *name, *text;    /* for programs, and for people */
    const char *first, *second; /* names of the numbers */
    uint32_t first_kind, second_kind;
};

/* What is true of all connections of a listener. */
struct dp_listener {
    uint32_t transport; /* enum dp_transport */
    uint32_t direction; /* enum dp_direction: also which route table */
    uint32_t mark;      /* SO_MARK of the upstream sockets, 0 for none (needs CAP_NET_ADMIN) */
    /* Connections to the application (on loopback, or at the original destination's address) come
     * from the client's address, or else from application_source, by family of the application
     * (0: IPv4, 1: IPv6; all zero: whatever the kernel picks). Both need IP_TRANSPARENT, and such
     * connections have the application_mark instead. The port is another one. The client's address
     * is only preserved on loopback, from where the rules bring the answers back; elsewhere these
     * connections would be mistaken for the client's own. */
    uint32_t preserve_source;
    uint32_t application_mark;
    struct mosnhook_address application_source[2];
    /* Replaces the address (not the port) of original destinations; all zero: no. */
    struct mosnhook_address application;
    /* With DP_TRANSPORT_LISTENER: its index among the listeners of services, see dp_set_services.
     */
    uint32_t number;
};

/* One route of the table; `rules` numbers index these. */
struct dp_route {
    /* Names it from one table to the next: with this key it goes on with its turns (round robin),
     * wherever it stands and whatever else has changed. */
    uint64_t key;
    uint32_t action;         /* enum dp_action */
    uint32_t balance;        /* enum dp_balance */
    uint32_t first_endpoint; /* index into the endpoints */
    uint32_t endpoint_count; /* 0: the original destination */
    /* With DP_REQUESTS: what the connection speaks. */
    uint32_t protocol;   /* enum dp_protocol, but not DP_TCP */
    uint32_t detect_ms;  /* DP_AUTO: how long the first bytes may take to tell */
    uint32_t undetected; /* DP_AUTO: DP_RELAY or DP_REFUSE where they do not tell */
};

enum {
    DP_SHARES = 1000000,        /* a share of all requests is so many of these */
    DP_STATUSES = 1024,         /* more than any protocol's highest */
    DP_NO_SERVICE = 0x7fffffff, /* no index */
    DP_STATUS_CLASSES = 6,      /* see struct dp_request */
};

/* Which rules a request is asked of: the configuration's count everywhere but at the provider port,
 * those of subscribed services where applications here call, those of published ones where they are
 * called. */
enum dp_scope {
    DP_SCOPE_OUTBOUND = DP_OUTBOUND, /* outbound connections, and listeners of services */
    DP_SCOPE_INBOUND = DP_INBOUND,   /* inbound connections */
    DP_SCOPE_PROVIDER,               /* the listener that other sidecars call */
    DP_SCOPES,
};

/* How a service came into the table. */
enum dp_role {
    DP_ROLE_CONFIGURED = 0,
    DP_ROLE_SUBSCRIBED,
    DP_ROLE_PUBLISHED,
    DP_ROLES,
};

/* Which endpoints of a service are passed over. One is available if it is neither unhealthy (see
 * dp_set_health) nor ejected by what became of requests. */
struct dp_endpoint_policy {
    uint32_t panic_share; /* DP_SHARES: with fewer available endpoints all are used; 0: never */
    /* So many requests in a row that fail by its fault eject an endpoint; 0: none does. */
    uint32_t outlier_errors;
    uint32_t outlier_ms;    /* for so long, times how often it was ejected lately */
    uint32_t outlier_share; /* DP_SHARES of the endpoints at most, but one always may be */
    uint32_t slow_start_ms; /* in which the share of a new one grows; 0: at once */
};

/* A service: where requests go. See dp_set_services. */
struct dp_service {
    uint32_t number; /* names it for as long as we run: with this number it goes on with its turns,
                      * counts and connections, whatever else has changed */
    uint32_t name;   /* a text: see dp_set_services */
    uint32_t protocol; /* enum dp_protocol, but not DP_AUTO */
    uint32_t balance;  /* enum dp_balance, but not DP_LEAST_CONNECTIONS */
    uint32_t hash_by;  /* DP_RING_HASH, DP_MAGLEV: a text, the name of the header, in lower case */
    uint32_t timeout_ms;     /* for a request; 0: none */
    uint32_t silent_ms;      /* for an endpoint without a byte while a request is there; 0: none */
    uint32_t idle_ms;        /* an upstream connection without a request is closed after that */
    uint32_t connections;    /* upstream connections at most, all workers together */
    uint32_t pending;        /* requests that wait for one at most, all workers together */
    uint32_t await_ms;       /* how long a request waits for the first endpoint; 0: not at all */
    uint32_t first_endpoint; /* index into the endpoints of all services */
    uint32_t endpoint_count;
    uint32_t role;       /* enum dp_role */
    uint32_t resilience; /* index into struct dp_services.resiliences, from 1 on; 0: none */
    struct dp_endpoint_policy policy;
};

/* After what a request is sent again; bits of dp_resilience.retry_on. */
enum dp_retry {
    DP_RETRY_CONNECT_FAILURE = 0,
    DP_RETRY_REFUSED,         /* the endpoint says that it has not begun to serve it */
    DP_RETRY_RESET_UNSENT,    /* its connection ended before a byte of it was sent */
    DP_RETRY_RESET,           /* its connection ended without an answer */
    DP_RETRY_ATTEMPT_TIMEOUT, /* there was no answer within attempt_ms */
    DP_RETRIES,
};

/* What a service does against failures and overload, and with copies of its requests. */
struct dp_resilience {
    uint32_t retries;  /* of a request at most, besides the first attempt; 0: as without a policy */
    uint32_t retry_on; /* 1 << enum dp_retry each */
    uint32_t attempt_ms; /* for an answer to begin, of each attempt; 0: there is no such limit */
    uint32_t backoff_ms, longest_backoff_ms;
    uint32_t budget;        /* DP_SHARES of the requests under way may be retries */
    uint32_t least_retries; /* that may be under way however few requests are */
    uint32_t requests;      /* under way at most, all workers together; 0: any number */
    /* So many in that time, and at once where there were none for long; 0: any number. */
    uint32_t rate_requests, rate_ms, rate_burst;
    uint32_t mirror_share; /* DP_SHARES of the requests are copied; 0: none */
    uint32_t mirror;       /* to this service, an index; where there is a share */
    uint32_t reserved;
    uint8_t statuses[DP_STATUSES / 8]; /* bits: answers after which it is sent again */
};

/* An endpoint of a service. */
struct dp_endpoint {
    struct mosnhook_address address;
    uint32_t weight; /* at least 1 */
    uint16_t level;  /* 0: preferred; 1: for what those cannot take. In this order in a service */
    uint16_t warm;   /* 1: no slow start, its weight says all */
};

/* A text is an index into these, and this is where it stands among their characters. The first one
 * is empty: none. */
struct dp_text {
    uint32_t first, size;
};

/* What is compared. */
enum dp_subject {
    DP_SUBJECT_HOST = 0,    /* HTTP, without its port; without regard to case */
    DP_SUBJECT_PATH,        /* HTTP, without its query */
    DP_SUBJECT_PATH_PREFIX, /* HTTP; a whole number of segments */
    DP_SUBJECT_METHOD,
    DP_SUBJECT_HEADER,
    /* Bolt, Dubbo, calls of gRPC: the service with its version, interface:version, or the interface
     * alone. */
    DP_SUBJECT_SERVICE,
    DP_SUBJECT_VERSION, /* Bolt, Dubbo and its triple: of the service */
    DP_SUBJECT_GROUP,   /* Dubbo and its triple */
    /* Bolt, Dubbo, gRPC: the service exactly as the request names it; Bolt's has its version. */
    DP_SUBJECT_TARGET,
    /* HTTP: a header in which clients name the service; without regard to case, like a host. */
    DP_SUBJECT_NAME_HEADER,
};

enum dp_pattern {
    DP_PATTERN_EXACT = 0,
    DP_PATTERN_GLOB, /* each "*" stands for any characters, or none */
    DP_PATTERN_ANY,  /* DP_SUBJECT_HEADER: it is there */
};

/* A condition of a rule. All must hold; of those that are alternatives one after the other, one. */
struct dp_predicate {
    uint32_t subject;     /* enum dp_subject */
    uint32_t pattern;     /* enum dp_pattern */
    uint32_t name;        /* DP_SUBJECT_HEADER, DP_SUBJECT_NAME_HEADER: a text */
    uint32_t value;       /* a text */
    uint32_t alternative; /* to the one before it */
};

/* A service that a rule sends requests to. */
struct dp_target {
    uint32_t service; /* index into the services, or DP_NO_SERVICE */
    uint32_t weight;  /* its share of the sum of all; at least 1 */
};

/* A header to be set. */
struct dp_header {
    uint32_t name, value; /* texts */
};

/* Which requests go to which services. The first one that matches counts. */
struct dp_rule {
    uint32_t protocol;   /* enum dp_protocol: it is for requests of that only */
    uint32_t timeout_ms; /* for a request; 0: the service's */
    uint32_t first_predicate, predicate_count;
    uint32_t first_target, target_count; /* at least one */
    /* How the request is changed. Texts; none: it is left alone. */
    uint32_t host;
    uint32_t path_prefix;          /* instead of the part of the path that was compared */
    uint32_t original_destination; /* the name of a header */
    uint32_t first_set, set_count;
    uint32_t first_remove, remove_count; /* headers, of which only the name counts */
    uint32_t scopes;                     /* 1 << enum dp_scope each, at least one */
    uint32_t handling; /* index into struct dp_services.handlings, from 1 on; 0: none */
};

/* What a rule says of its requests beyond their way. */
struct dp_handling {
    uint32_t delay_ms, delay_share;     /* DP_SHARES of them are held for so long */
    uint32_t abort_status, abort_share; /* DP_SHARES of them are answered with that at once */
    uint32_t hedge_ms;                  /* a second attempt after that; 0: none */
    uint32_t idempotent;                /* 1: all of them may be done twice */
};

/* What a listener of services says: see struct dp_listener.number. */
struct dp_entrance {
    uint32_t protocol;              /* enum dp_protocol */
    uint32_t detect_ms, undetected; /* as in struct dp_route */
    uint32_t service;               /* index, or DP_NO_SERVICE: by the rules */
    uint32_t scope;                 /* enum dp_scope: by which rules */
    /* How long a request waits for a service that no rule of the scope leads to, and which the
     * control plane is told of (see dp_take_wanted); 0: it is refused at once. */
    uint32_t on_demand_ms;
    uint32_t name_header; /* HTTP: a text, the header that names the service; none: the host */
};

enum {
    DP_WANTED_NAME_BYTES = 256,
    DP_WANTED_TEXT_BYTES = 64,
};

/* A service that requests wait for, as they name it. Texts are NUL-padded, and whole. */
struct dp_wanted {
    uint32_t protocol; /* enum dp_protocol */
    uint32_t triple;   /* 1: DP_GRPC, and a client of Dubbo's asks */
    char name[DP_WANTED_NAME_BYTES];
    char version[DP_WANTED_TEXT_BYTES], group[DP_WANTED_TEXT_BYTES]; /* Dubbo */
};

/* The table of services. */
struct dp_services {
    const struct dp_service *services;
    const struct dp_endpoint *endpoints;
    const struct dp_rule *rules;
    const struct dp_predicate *predicates;
    const struct dp_target *targets;
    const struct dp_header *headers;
    const struct dp_entrance *entrances;
    const struct dp_resilience *resiliences;
    const struct dp_handling *handlings;
    const struct dp_text *texts;
    const char *characters;
    uint32_t service_count, endpoint_count, rule_count, predicate_count, target_count, header_count,
        entrance_count, resilience_count, handling_count, text_count, character_count;
};

enum {
    DP_SERVICE_BYTES = 64,
    DP_METHOD_BYTES = 32,
    DP_PATH_BYTES = 160,
};

/* How a request says which trace it belongs to: see l7/trace_context.h. */
enum dp_trace_form {
    DP_TRACE_W3C = 1,
    DP_TRACE_B3,       /* one header */
    DP_TRACE_B3_MULTI, /* several */
    DP_TRACE_SOFA,     /* SOFATracer's, of Bolt */
};

enum {
    DP_TRACE_FORMS = 4,
    DP_TRACE_ID_BYTES = 16,
    DP_SPAN_ID_BYTES = 8,
    DP_AUTHORITY_BYTES = 128,
    DP_TRACE_STATE_BYTES = 512,
};

/* Which requests are traced. All zero: none, and nothing is looked for. */
struct dp_tracing {
    uint32_t forms[DP_TRACE_FORMS]; /* enum dp_trace_form, the one that counts most first; 0: no
                                     * more. They are looked for, and written. */
    uint32_t all;                   /* 1: every new trace is sampled, else those */
    uint32_t reserved;
    uint64_t bound; /* whose id is lower than this, as a number of its last 8 bytes; with 0 and not
                     * `all`, no trace is started */
};

/* What the control plane knows of one request. Texts are NUL-padded, and cut where they are too
 * long; they may hold any byte but NUL. */
struct dp_request {
    uint64_t connection;     /* the id of its connection's record */
    uint64_t began_ns;       /* CLOCK_REALTIME */
    uint64_t duration_ns;    /* until the last byte of the answer was passed on, or it failed */
    uint64_t first_byte_ns;  /* until the answer began; 0: it did not */
    uint64_t bytes_sent;     /* of the request, with its head, as the client sent it */
    uint64_t bytes_received; /* of the answer, with its head, as the client got it */
    struct mosnhook_address source;
    struct mosnhook_address upstream; /* the last one that was tried; all zero: none */
    uint32_t status;                  /* as the protocol numbers them; what the client got */
    uint32_t flags;                   /* 1 << enum dp_flag each */
    uint16_t attempts;                /* upstreams that it was sent to, or tried to */
    uint8_t protocol;                 /* enum dp_protocol */
    uint8_t direction;                /* enum dp_direction */
    /* 0: none was sent; else HTTP's hundreds, to which other protocols' are mapped: 2 success, 4
     * the request is at fault, 5 the service or the way to it */
    uint8_t status_class;
    uint8_t answered; /* there was an answer, ours or the service's, and `status` is of it */
    uint8_t reserved[2];
    char service[DP_SERVICE_BYTES]; /* the name in the configuration, else what the request asks for
                                     */
    char method[DP_METHOD_BYTES];
    char path[DP_PATH_BYTES]; /* HTTP: with its query; Bolt, Dubbo: the service that it asks for */
    uint8_t trace_id[DP_TRACE_ID_BYTES]; /* all zero: it belongs to no trace */
    uint8_t span_id[DP_SPAN_ID_BYTES];   /* ours in it; all zero: none */
};

/* A request that was sampled, when it has ended. */
struct dp_span {
    struct dp_request request;
    uint8_t parent_id[DP_SPAN_ID_BYTES]; /* all zero: it begins the trace, as far as we know */
    char authority[DP_AUTHORITY_BYTES];  /* HTTP: the host with its port, as the client wrote it */
    char state[DP_TRACE_STATE_BYTES];    /* W3C's tracestate; empty where it is longer */
};

/* What a request or an answer may have at most. */
struct dp_request_limits {
    uint32_t line_bytes;  /* of an HTTP request line */
    uint32_t head_bytes;  /* of an HTTP head with its line */
    uint32_t fields;      /* of an HTTP head */
    uint32_t frame_bytes; /* of a frame of Bolt or Dubbo */
};

/* When a connection's bytes take a shorter path, and which. */
struct dp_acceleration {
    uint32_t path;             /* DP_PATH_FULL or DP_PATH_LOCAL */
    uint32_t blocking_sockets; /* also those of applications that block in recv() */
    uint32_t after_round_trips;
    uint32_t connections; /* at a time, at least 1; further ones are relayed */
    uint64_t after_bytes; /* in both directions together */
};

enum {
    DP_REASON_SIZE = 256,
    DP_ADMIN_CONNECTIONS = 128, /* fds that are left for them */
};

/* Milliseconds, each at least 1 unless it says otherwise. */
struct dp_timeouts {
    uint32_t connect_ms;  /* for each endpoint */
    uint32_t idle_ms;     /* without a byte in either direction */
    uint32_t header_ms;   /* for the whole PROXY header or control request */
    uint32_t ejection_ms; /* of an endpoint after a connect that failed; 0: none is ejected */
    uint32_t flush_ms;    /* for a client of HTTP/2 to take some of what waits for it */
};

#endif
