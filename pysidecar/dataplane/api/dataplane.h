/* The data plane's interface to the control plane. Python reads this header through cffi.
 *
 * Ownership: a connection belongs to the worker thread that accepted it from its first byte until
 * it closes; the control side may read the counters of any live one meanwhile. All dp_*
 * functions are for one control thread; none blocks, except dp_stop.
 *
 * The control side may be late, and need not come at all: it finds sums of everything (struct
 * dp_tallies), the latest records of closed connections, and lines of the access log up to a limit,
 * beyond which they are dropped, and counted.
 */
#ifndef PYSIDECAR_DATAPLANE_H
#define PYSIDECAR_DATAPLANE_H

#include <stddef.h>
#include <stdint.h>

#include "base/terms.h"

enum {
    DP_TRANSPORTS = 5,
    DP_ACTIONS = 4,
    DP_PATHS = 4,
    DP_ENDS = 32, /* room for enum dp_end */
    DP_ERRNOS = 256,
    DP_DURATION_BOUNDS = 11,
    DP_REQUEST_BOUNDS = 16,
    DP_LOG_TEXT_BYTES = 96,   /* of a text of struct dp_log_texts, with its NUL */
    DP_LOG_FLAG_BYTES = 32,   /* of its flags, of which a line may have several */
    DP_LOG_LINE_BYTES = 4096, /* more than the longest line has */
    DP_LOG_BLOCK_BYTES = 256 * 1024,
};

/* What the control plane knows of one connection. */
struct dp_record {
    uint64_t id;             /* unique in this process, in the order of accepting */
    uint64_t opened_ns;      /* CLOCK_REALTIME */
    uint64_t duration_ns;    /* until closed, or until now */
    uint64_t bytes_sent;     /* application to upstream */
    uint64_t bytes_received; /* upstream to application */
    struct mosnhook_address source;
    struct mosnhook_address original_destination; /* all zero while unknown */
    struct mosnhook_address upstream;             /* all zero while there is none */
    uint32_t pid;                                 /* 0 where unknown */
    uint32_t uid;                                 /* UINT32_MAX where unknown */
    uint32_t route;                      /* index of the route that matched, UINT32_MAX for none */
    int32_t error;                       /* errno, 0 for none */
    uint16_t transport;                  /* enum dp_transport */
    uint16_t direction;                  /* enum dp_direction */
    uint16_t action;                     /* enum dp_action */
    uint16_t end;                        /* enum dp_end */
    uint16_t path;                       /* enum dp_path */
    uint16_t reserved;                   /* 0 */
    uint32_t rtt_us;                     /* smoothed round-trip time, 0 where it was not measured */
    char command[MOSNHOOK_COMMAND_SIZE]; /* NUL-padded; "" where unknown */
};

/* An ejected endpoint: connections get another one of the route, unless all are ejected. */
struct dp_ejected {
    struct mosnhook_address endpoint;
    uint32_t direction; /* enum dp_direction */
    uint32_t route;     /* its index */
};

/* Sums since the start, over all workers. */
struct dp_counters {
    uint64_t accepted;
    uint64_t closed;
    uint64_t bytes_sent;
    uint64_t bytes_received;
    uint64_t bytes_spliced;    /* the part of both sums that was spliced */
    uint64_t connect_failures; /* endpoints that could not be connected */
    uint64_t accept_pauses;    /* times that accepting paused for lack of fds */
    /* HTTP/2: since clients had too many; since they did not take their answers. */
    uint64_t streams_refused, streams_not_taken;
    uint64_t buffers;          /* relay buffers and pipes in use now */
    uint64_t connection_bytes; /* user memory of one idle connection, bytes */
    uint64_t fds_used;         /* file descriptors that connections and pipes reserve now */
    uint64_t fds_budget;       /* the budget for them */
    uint64_t fds_limit; /* the process's limit; the rest is for listeners and the control plane */
    uint64_t full;      /* 1 while too few are left and connections are refused */
};

/* Sums over all connections, for the metrics. Reading them costs the same for any number of
 * connections. */
struct dp_tallies {
    /* By enum dp_direction, dp_transport and dp_action: connections open now, and all that closed.
     */
    uint64_t open[DP_DIRECTIONS][DP_TRANSPORTS][DP_ACTIONS];
    uint64_t closed[DP_DIRECTIONS][DP_TRANSPORTS][DP_ACTIONS];
    uint64_t ends[DP_ENDS]; /* by enum dp_end */
    /* How many lasted no longer than each of dp_duration_bounds_ns, but longer than the bound
     * before; the last one counts those beyond all bounds. */
    uint64_t durations[DP_DURATION_BOUNDS + 1];
    uint64_t duration_us;   /* sum of all durations */
    uint64_t lines_dropped; /* of the access log, because nobody took them */
};

extern const uint64_t dp_duration_bounds_ns[DP_DURATION_BOUNDS];

/* Sums of requests that ended, unless it says otherwise. */
struct dp_tally {
    uint64_t active; /* under way now */
    uint64_t statuses[DP_STATUS_CLASSES];
    uint64_t flags[DP_FLAGS]; /* by enum dp_flag */
    /* With a flag that is a failure, DP_FLAG_SERVICE_ERROR, or an answer of class 5. */
    uint64_t failures;
    uint64_t attempts; /* may be more than requests */
    uint64_t bytes[2]; /* sent, received */
    /* By status class: how many took no longer than each of dp_request_bounds_ns, but longer than
     * the bound before; the last one counts those beyond all bounds. */
    uint64_t durations[DP_STATUS_CLASSES][DP_REQUEST_BOUNDS + 1];
    uint64_t duration_us[DP_STATUS_CLASSES]; /* sums of all durations */
    uint64_t connections;                    /* upstream connections open now */
    uint64_t pending;                        /* requests that wait for one now */
};

extern const uint64_t dp_request_bounds_ns[DP_REQUEST_BOUNDS];

/* Bounds of a service that may be reached: bits of dp_service_sums.reached. */
enum dp_bound {
    DP_BOUND_CONNECTIONS = 0,
    DP_BOUND_PENDING,
    DP_BOUND_REQUESTS,
    DP_BOUND_RATE,
};
/* Whether HTTP/2 was built in: 1, or 0 where libnghttp2 was missing. */
int dp_has_http2(void);
/* The status of an answer of HTTP/2, whose whole header block this is. 0: there is none. */
uint32_t dp_http2_status(const uint8_t *block, size_t size);

/* Of a service, since the start. */
struct dp_service_sums {
    uint32_t number, protocol, role; /* as in struct dp_service */
    uint32_t reached;                /* 1 << enum dp_bound each: now */
    uint32_t retries;                /* requests that are sent again, or wait for that, now */
    uint32_t panic;                  /* 1: so few endpoints are available that all get requests */
    const char *name;                /* without a NUL; valid until the next dp_set_services */
    uint64_t name_size;
    uint32_t endpoints, available; /* how many there are, and how many of them may get requests */
    struct dp_tally tally;
};

/* Of an endpoint, since a service has it without interruption. */
struct dp_endpoint_sums {
    struct mosnhook_address address;
    uint32_t service;    /* its number */
    uint32_t weight;     /* 1 where all of the service weigh the same */
    uint32_t ejected;    /* 1: it could not be connected: it gets no requests for now, unless all of
                          * the   service are like that */
    uint32_t unhealthy;  /* 1: see dp_set_health */
    uint64_t ejected_ms; /* for so long it gets none, since requests failed; 0: it may get some */
    uint32_t other_zone; /* 1: it is in the second level, and there is a first one */
    uint32_t reserved;
    struct dp_tally tally;
};

/* What health checks say of a service's endpoint. */
struct dp_health {
    struct mosnhook_address address;
    uint32_t service; /* its number */
    uint32_t healthy; /* 0: no request goes there, unless it is panic */
};

/* Where dp_read_services or dp_read_endpoints goes on; zero at the beginning, but for `only_used`.
 */
struct dp_place {
    uint32_t service, endpoint; /* indices */
    uint32_t only_used;         /* only what requests have got to, and endpoints that are ejected */
    uint32_t ended;             /* set when there is no more */
};

/* The words of the access log, escaped for a JSON string where necessary. */
struct dp_log_texts {
    const char *directions[DP_DIRECTIONS];
    const char *transports[DP_TRANSPORTS];
    const char *actions[DP_ACTIONS];
    const char *paths[DP_PATHS];
    const char *ends[DP_ENDS];     /* NULL: no error */
    const char *errnos[DP_ERRNOS]; /* NULL: it has no name */
    const char *protocols[DP_PROTOCOLS];
    const char *flags[DP_FLAGS];
};

/* What lines there are in the access log. */
enum dp_log {
    DP_LOG_CONNECTIONS = 1,
    DP_LOG_REQUESTS = 2,
    DP_LOG_QUERIES = 4, /* requests with the query of their path */
};

struct dp;
struct dp_walk;

/* Returns NULL with errno set. `workers` threads, at least 1, start with dp_start. */
struct dp *dp_create(uint32_t workers, const struct dp_timeouts *timeouts);

/* Adds a listening, non-blocking socket; the data plane owns the fd from here on, also on failure.
 * 0 or -errno. Before dp_start only. */
int dp_add_listener(struct dp *dp, int fd, const struct dp_listener *listener);

/* Opens a park (see contract.h) on `address` (its port is ignored) and stores where it is.
 * 0 or -errno. Before dp_start only. */
int dp_add_park(struct dp *dp, struct mosnhook_address *address);

/* Sets who may use listeners of DP_TRANSPORT_HEADER, by the kernel's word: root, the user as whom
 * we run, and `uids`; with `everybody_else`, all but `uids`. Without this call, nobody else. 0 or
 * -errno. Before dp_start only. */
int dp_set_clients(struct dp *dp, int everybody_else, const uint32_t *uids, size_t count);

/* Sets the addresses of our own listeners: a connection whose original destination is one of them
 * is a loop. */
int dp_set_own_addresses(struct dp *dp, const struct mosnhook_address *addresses, size_t count);

/* Whether this kernel completes a parked socket by simultaneous open: tried on `address`.
 * 1, 0, or -errno. */
int dp_parking_works(const struct mosnhook_address *address);

/* Whether the kernel reports the end of connections that are not ours, which direct ones need. 0 or
 * -errno. */
int dp_direct_works(void);

/* Accelerates connections by the BPF programs of an object file. 0, or -errno with a `reason` (of
 * DP_REASON_SIZE bytes) for people. Before dp_start only. */
int dp_accelerate(struct dp *dp, const char *path, const struct dp_acceleration *settings,
                  char *reason);

/* Sets the page whose alive_ns, accelerates, elsewhere and full the data plane maintains. It must
 * stay mapped until dp_stop. Before dp_start only. */
void dp_set_page(struct dp *dp, struct mosnhook_page *page);

/* To be called around every change of the page: the seqlock of contract.h, with a memory order that
 * Python cannot express. */
void dp_page_begin(struct mosnhook_page *page);
void dp_page_end(struct mosnhook_page *page);

/* Replaces the route table of one direction, or DP_EXCLUDED; all arrays are copied. 0 or -errno
 * (-EINVAL: inconsistent table). */
int dp_set_routes(struct dp *dp, uint32_t which, const struct mosnhook_rules *rules,
                  const struct dp_route *routes, size_t route_count,
                  const struct mosnhook_address *endpoints, size_t endpoint_count);

/* Replaces the table of services; all arrays are copied. Requests that are under way keep the
 * service they have. 0 or -errno (-EINVAL: inconsistent, or a service's number had another name
 * before). */
int dp_set_services(struct dp *dp, const struct dp_services *services);

/* Sets what health checks say, at once, without another table. Whoever is not an endpoint of the
 * newest table, nor of one that is still used, is left out; an endpoint that comes is healthy.
 */
void dp_set_health(struct dp *dp, const struct dp_health *health, size_t count);

/* A service of which some endpoints are not available. */
struct dp_outage {
    const char *name; /* without a NUL; valid until the next dp_set_services */
    uint64_t name_size;
    uint32_t number; /* of the service */
    uint32_t endpoints, available;
    uint32_t panic;       /* 1: so few that all get requests */
    uint32_t panic_share; /* DP_SHARES: below which that is so */
    uint32_t reserved;
};

/* Stores at most `max` services like that. Returns how many there are; with most services, it is
 * quick. */
size_t dp_outages(struct dp *dp, struct dp_outage *outages, size_t max);

/* Stores at most `max` services that requests wait for (see dp_entrance.on_demand_ms) and that were
 * not taken yet. Signalled by the event. Returns their number; 0 when there are no more. */
size_t dp_take_wanted(struct dp *dp, struct dp_wanted *wanted, size_t max);

/* 0 or -errno (-EINVAL: there is no room for so many fields). Before dp_start only. */
int dp_set_request_limits(struct dp *dp, const struct dp_request_limits *limits);

/* Leaves `count` more fds to the control plane, a small number. Before dp_start only. */
void dp_keep_fds(struct dp *dp, uint32_t count);

void dp_set_timeouts(struct dp *dp, const struct dp_timeouts *timeouts);

/* 0 or -errno. */
int dp_start(struct dp *dp);

/* Readable when connections have closed, or `full` has changed, since the last dp_clear_event,
 * which comes before looking at what is new. */
int dp_event_fd(struct dp *dp);
void dp_clear_event(struct dp *dp);

/* Sets how many records of closed connections each worker keeps for dp_take_closed: at least so
 * many of the latest. The default is 1024. 0 or -errno. Before dp_start only. */
int dp_keep_closed(struct dp *dp, size_t records);

/* Stores at most `max` closed connections: each once, unless too many others closed since. Those of
 * a worker are in order. Returns their number; 0 when there are no more. */
size_t dp_take_closed(struct dp *dp, struct dp_record *records, size_t max);

void dp_read_tallies(struct dp *dp, struct dp_tallies *tallies);

/* From here on a line is written for each connection that closes and each request that ends, as
 * `kinds` (of enum dp_log) says. The texts must stay until dp_destroy. 0 or -errno (-EINVAL: one is
 * too long). */
int dp_log(struct dp *dp, const struct dp_log_texts *texts, uint32_t kinds);

/* Stores whole lines in a buffer of DP_LOG_BLOCK_BYTES. Returns the number of bytes; 0 when there
 * are no more. */
size_t dp_take_lines(struct dp *dp, char *buffer);

/* Writes the line of one connection, with its newline, at most DP_LOG_LINE_BYTES. Returns its
 * length. */
size_t dp_log_line(const struct dp_log_texts *texts, const struct dp_record *record, char *line);
/* The same of one request; with `query`, its path has its query. */
size_t dp_request_line(const struct dp_log_texts *texts, const struct dp_request *request,
                       int query, char *line);

/* Stores at most `max` of the latest requests that ended, the latest first: each worker keeps
 * 1,023. Returns their number. */
size_t dp_recent_requests(struct dp *dp, struct dp_request *requests, size_t max);
/* The same of those that failed, as dp_tally.failures counts them: each worker keeps 255. */
size_t dp_failed_requests(struct dp *dp, struct dp_request *requests, size_t max);
/* Stores at most `max` of the slowest of the last five minutes, the slowest first: each worker
 * keeps 32 of each minute. Those that became tunnels are left out. Returns their number. */
size_t dp_slowest_requests(struct dp *dp, struct dp_request *requests, size_t max);

/* Which requests are traced from now on; at first none. 0 or -errno (-EINVAL: no such form). */
int dp_set_tracing(struct dp *dp, const struct dp_tracing *settings);

/* Stores at most `max` spans that were not taken yet: each worker keeps 2,047. Returns their
 * number; adds the number of those that were overwritten first to `*missed`. For one thread at a
 * time, which may be another one than the control thread. */
size_t dp_take_spans(struct dp *dp, struct dp_span *spans, size_t max, uint64_t *missed);

/* Sums of the requests that reached no service. */
void dp_read_unserved(struct dp *dp, struct dp_tally *tally);

/* Stores at most `max` services of the newest table, in its order, from `place` on, and moves that
 * behind them. Returns their number, which may be 0 before the end. */
size_t dp_read_services(struct dp *dp, struct dp_place *place, struct dp_service_sums *services,
                        size_t max);
/* The same of the endpoints of these services. */
size_t dp_read_endpoints(struct dp *dp, struct dp_place *place, struct dp_endpoint_sums *endpoints,
                         size_t max);

/* The stations of trace events. */
extern const struct dp_trace_station dp_trace_stations[];
extern const uint32_t dp_trace_station_count;

/* Switches trace events on or off. 0 or -errno. */
int dp_trace(struct dp *dp, int on);

/* Stores at most `max` trace events that were not taken yet, those of a worker in order. Returns
 * their number; adds the number of those that were overwritten first to `*missed`. `max` is at
 * least the number of workers. */
size_t dp_take_trace(struct dp *dp, struct dp_trace_event *events, size_t max, uint64_t *missed);

/* Stores at most `max` live connections. Returns the number of all live ones; with `max` 0 does
 * nothing else. */
size_t dp_snapshot(struct dp *dp, struct dp_record *records, size_t max);

/* Begins a walk over the connections that are live now, to be done in pieces. It leaves out
 * connections that close before it reaches them, and gives none twice. NULL when out of memory. */
struct dp_walk *dp_walk_begin(struct dp *dp);

/* Stores at most `max` further connections, as they are now. Returns their number, 0 at the end. */
size_t dp_walk_next(struct dp_walk *walk, struct dp_record *records, size_t max);

/* Frees the walk. May be called after dp_destroy. */
void dp_walk_end(struct dp_walk *walk);

/* The number of live connections whose bytes pass the data plane: those that a drain waits for. */
size_t dp_passing(struct dp *dp);
/* Whether, after dp_drain, everything that waited at the listeners was accepted. Signalled by the
 * event. */
int dp_drained(struct dp *dp);

/* Stores the number of live connections of each worker, for at most `max` workers. Returns the
 * number of workers. */
size_t dp_loads(struct dp *dp, uint64_t *loads, size_t max);

/* Stores at most `max` endpoints that are ejected now. Returns the number of all of them. */
size_t dp_ejected(struct dp *dp, struct dp_ejected *ejected, size_t max);

void dp_read_counters(struct dp *dp, struct dp_counters *counters);

/* Closes the listeners; live connections go on. */
void dp_drain(struct dp *dp);

/* Aborts what is left and joins the workers. Closed connections and lines can still be taken. */
void dp_stop(struct dp *dp);

/* After dp_stop (or before dp_start). */
void dp_destroy(struct dp *dp);

#endif
