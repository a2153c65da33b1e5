/* What the files of the data plane share. One file, one idea:
 *
 *   dataplane.c  the interface of dataplane.h, called by the control thread
 *   worker.c     one thread: epoll loop, accepting, timers
 *   header.c     downstream side: connections that begin with a PROXY v2 header
 *   clients.c    who may use them, and how many connections may keep us waiting
 *   netfilter.c  downstream side: connections that REDIRECT or TPROXY rules brought here
 *   control.c    downstream side: requests of the connect hook on the control socket
 *   foreign.c    descriptors that came with them, and how they are closed
 *   direct.c     connections that the application makes itself
 *   diag.c       what the kernel says of their sockets
 *   park.c       sockets that wait in SYN_SENT, and how they are completed or failed
 *   unparked.c   sockets that cannot, and connect themselves
 *   upstream.c   route, endpoints, connecting
 *   relay.c      moving bytes
 *   accelerate.c moving them in the kernel, by the BPF programs in bpf/
 *   upstream/    the route table, and what outlives it: clusters and endpoints
 *   connection.c a connection's life, and its way to the control thread
 *   timers.c     deadlines
 *   address.c    addresses
 *
 * Threads: a worker and its connections are touched by the worker's own thread only. What crosses
 * threads is atomic and marked so below.
 */
#ifndef PYSIDECAR_DATAPLANE_INTERNAL_H
#define PYSIDECAR_DATAPLANE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

#include "address.h"
#include "base/clock.h"
#include "base/counter.h"
#include "base/fd.h"
#include "base/owner.h"
#include "base/stack.h"
#include "dataplane.h"
#include "loop/loop.h"
#include "upstream/table.h"

enum {
    SCRATCH_SIZE = 64 * 1024, /* bytes of one recv: a worker's, not a connection's */
    PIPE_SIZE = 512 * 1024,   /* bytes of a splice pipe */
    POOLED_PIPES = 32,        /* empty pipes that a worker keeps open */
    RELAY_BATCH = 16,         /* reads of one direction before others get their turn */
    MAX_LISTENERS = 64,
    DIRECTIONS = 2,           /* enum dp_direction */
    TABLES = 3,               /* theirs, and DP_EXCLUDED */
    MAX_UNREPORTED = 1 << 16, /* closed connections that the control thread has not taken */
    FDS_PER_REQUEST = 4,      /* control socket, the application's socket, upstream, downstream */
    FDS_PER_RELAY = 2,        /* downstream, upstream */
    FDS_SPARE = 64 + DP_ADMIN_CONNECTIONS, /* left for the control plane */
    FDS_TO_REFUSE = 5, /* of a worker, for a request that gets no others: what may come with it */
    REFUSE_AFTER_MS = 1000, /* how long a connection waits for descriptors */
    REAPERS = 32,
    CLIENT_SLOTS = 1024,
};

struct accelerated;
struct connection;
struct reapers;
struct record;
struct worker;

/* ---- addresses; the predicates are in hook/address.h ---- */

extern const struct mosnhook_address loopback_address[2]; /* IPv4, IPv6; port 0 */

/* Returns the length of the socket address. */
socklen_t address_to_socket(const struct mosnhook_address *address,
                            struct sockaddr_storage *socket_address);
/* Leaves a zero address for families other than IPv4 and IPv6. */
void address_from_socket(struct mosnhook_address *address,
                         const struct sockaddr_storage *socket_address);
/* Not an address at all: never set. (The unspecified IPv4 address is not zero, it is v4-mapped.) */
bool address_is_zero(const struct mosnhook_address *address);
/* 0 or -errno. */
int address_of_local(int fd, struct mosnhook_address *address);
int address_of_peer(int fd, struct mosnhook_address *address);

/* ---- listeners ---- */

struct listener {
    int fd;
    struct dp_listener settings;
};

/* A worker's watch of one. */
struct acceptor {
    struct watch watch;
    struct worker *worker;
    const struct listener *listener;
};

struct park {
    struct mosnhook_address address;
    int listener;
    int filler; /* of its accept queue; -1: not needed */
};

/* ---- route table: see upstream/ ---- */

/* Endpoints whose last connect failed after that moment are ejected. */
uint64_t ejected_since(const struct dp *dp, uint64_t now_ms);

/* ---- connections ---- */

enum phase {
    PHASE_REQUEST,    /* the hook's request has not come */
    PHASE_HEADER,     /* the PROXY header is not complete */
    PHASE_EXPECTED,   /* the application's own connection to us, before there is an upstream */
    PHASE_CONNECTING, /* to the upstream */
    PHASE_COMPLETING, /* the application's socket is being connected to us */
    PHASE_FAILING,    /* the parked socket */
    PHASE_RELAYING,
    PHASE_DIRECT, /* not here: between the application and the upstream */
    PHASE_CLOSED,
};

enum { DOWNSTREAM = 0, UPSTREAM = 1 };

struct side {
    struct watch watch;
    bool readable;    /* until recv says otherwise (edge-triggered) */
    bool writable;    /* until send says otherwise */
    bool hung_up;     /* EPOLLRDHUP came: there is an end to read */
    bool urgent;      /* EPOLLPRI came: there is a mark to reach */
    bool plain;       /* the next byte is not an urgent one, as epoll said */
    bool ended;       /* its end was read */
    bool finished;    /* its write side was shut down */
    uint64_t read_ns; /* the turn of the loop that read it last */
};

/* What is watched of a side. */
#define SIDE_EVENTS ((uint32_t)(EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET))

struct chunk {
    uint32_t start, end;
    int flags; /* of send(): MSG_OOB, or 0 */
    uint8_t data[];
};

struct pipe {
    struct pipe *next;
    int read_end, write_end;
    size_t held; /* bytes in it */
};

/* One direction, named by the side that it reads. At most one of chunk and pipe holds bytes. */
struct flow {
    _Atomic uint64_t bytes; /* passed on; written by the worker, read by the control thread */
    struct chunk *chunk;    /* read but not sent; NULL when everything was sent */
    struct pipe *pipe;
    uint8_t streak; /* consecutive full reads, or small ones while splicing */
    bool splicing;
};

/* `phase` is stored with release order after the fields that the control thread may read from then
 * on: destination, process, route from PHASE_CONNECTING; source too, but of a socket that came
 * unparked from PHASE_COMPLETING, and never in PHASE_DIRECT; upstream from PHASE_RELAYING;
 * everything once closed. */
struct connection {
    struct worker *worker;
    const struct listener *listener;
    struct connection *next_opened; /* the control thread's inbox */
    struct connection *next_closed; /* the worker's list of this turn, then the inbox */
    struct connection *live_next, *live_previous; /* the control thread's list */

    uint64_t id;
    uint64_t opened_real_ns, opened_ns, closed_ns;
    uint64_t last_active_ms;
    uint64_t accelerate_at_ms; /* not before, if it is to be tried again */
    struct timer timer;        /* of the phase that it is in */
    struct task task;          /* to go on relaying: it used its batch */

    struct side side[2];
    struct flow flow[2];
    struct watch request; /* the control socket, until answered */
    int application;      /* the application's own socket, until completed */
    uint64_t cookie;      /* its SO_COOKIE, if it is connected directly */

    struct mosnhook_address source, original_destination, upstream;
    struct mosnhook_address park;

    struct accelerated *accelerated; /* NULL: relayed */

    struct cluster *cluster; /* where `endpoint` is from; NULL: the route has none */
    struct endpoint *endpoint;
    uint32_t first_endpoint, attempts; /* in the cluster; endpoints tried or postponed */
    uint64_t postponed;                /* attempts, as bits: the endpoints were ejected */

    uint32_t pid, uid, route;
    uint32_t header_size; /* of the PROXY header; 0: there was none */
    uint32_t round_trips;
    int32_t error;
    _Atomic uint8_t phase; /* enum phase */
    _Atomic uint8_t path;  /* enum dp_path */
    uint8_t action, end;
    uint8_t fds_reserved;
    uint8_t last_read; /* the side: DOWNSTREAM or UPSTREAM */
    bool asked, waits, parked;
    bool waiting;          /* counted by clients_may_wait */
    bool admitted;         /* by clients_admit */
    bool unserved;         /* there are no descriptors for it: it is only to be refused */
    bool present, counted; /* direct.c: was just seen; its bytes are final */
    /* Of a direct connection when it was looked at last, by its worker or the control thread. */
    _Atomic uint64_t seen_bytes[2];
    _Atomic uint32_t rtt_us;
    struct mosnhook_address seen_source; /* the control thread's */
    bool hooked;                         /* our hook is in the application */
    uint8_t accelerable;                 /* tries that are left */
    char command[MOSNHOOK_COMMAND_SIZE];
};

/* A new connection that is known to the control thread, for which so many fds are reserved; or NULL
 * (out of memory), and they are no longer. */
struct connection *connection_open(struct worker *worker, const struct listener *listener,
                                   enum phase phase, uint8_t fds);
/* Closes everything it holds; the control thread gets it after this turn of the loop. Further calls
 * change nothing. Sides that have not ended in order are reset. */
void connection_close(struct connection *connection, enum dp_end end, int error);
/* Tells the application that its connect failed, then closes. Where we are out of something, one
 * that waits is told to do what it does while there is no sidecar. */
void connection_refuse(struct connection *connection, enum dp_end end, int error);
void connection_enter(struct connection *connection, enum phase phase);
void connection_release_fds(struct connection *connection, uint8_t keep);
/* Hands the connections that closed in this turn to the control thread. */
void connections_hand_over(struct worker *worker);
void connection_describe(const struct connection *connection, uint64_t now_ns,
                         struct dp_record *record);
void connection_free(struct connection *connection);
/* Frees the oldest closed connections beyond MAX_UNREPORTED, unreported but counted: so that
 * workers go on, within bounds, while the control thread does not. */
void reports_drop(struct dp *dp);

/* ---- workers ---- */

/* Direct connections by their sockets' cookies. */
struct cookies {
    struct connection **slots;
    size_t count, capacity;
};

struct counters {
    counter accepted, closed, bytes[2], bytes_spliced, connect_failures, accept_pauses;
    counter buffers;
};

struct worker {
    struct dp *dp;
    pthread_t thread;
    bool started;
    unsigned index;
    struct loop loop;
    struct timer alive; /* to show it in the page */
    struct task turn_ends, accept_turn_ends;
    struct watch mail;  /* eventfd */
    int diag;           /* netlink: see diag_user; -1: not open */
    struct watch freed; /* netlink: sockets that the kernel frees; -1: not listening */
    struct cookies direct;
    bool events_lost;                /* of `freed` */
    uint64_t direct_until_ms;        /* when the last direct connection ended */
    _Atomic(struct reused *) reused; /* sockets that other workers were asked for */
    _Atomic(struct table *) new_tables[TABLES];
    struct table *tables[TABLES];
    uint64_t random;            /* see base/random.h */
    struct acceptor *acceptors; /* one for each listener */
    bool accepting, drained;
    bool leaves_to_others; /* does not accept, since it has too many connections */
    struct timer accept_again;
    struct timer refuse; /* those that wait for descriptors */
    struct connection *closed;
    struct connection *polled; /* accelerated ones with a receiver that is behind */
    struct timer poll;
    struct pipe *pipes;
    unsigned pooled_pipes;
    struct counters counters;
    uint8_t scratch[SCRATCH_SIZE];
};

struct resting_slot {
    uint64_t until_ms;
    uint32_t slot;
};

struct accelerator {
    struct dp_acceleration settings;
    void *object; /* libbpf's; NULL: there is no acceleration */
    struct record *records;
    int attach, join, probe; /* programs */
    int ends;                /* the map of their sockets */
    int wake_senders;        /* a link: what is read from it runs the program */
    _Atomic uint64_t look_at_memory_at_ms;
    atomic_bool memory_short;
    pthread_mutex_t lock; /* of what follows: for a moment in a connection's life */
    struct resting_slot *free;
    size_t first_free, free_count;
};

struct clients {
    uint32_t *uids; /* sorted */
    size_t count;
    bool everybody_else;
    atomic_uint waiting[CLIENT_SLOTS]; /* by uid; users share one by chance */
};

struct dp {
    struct worker *workers;
    uint32_t worker_count;
    bool started, joined;
    uint32_t uid;       /* as whom we run */
    uint64_t namespace; /* see foreign_namespace */
    struct reapers *reapers;
    struct clients clients;

    struct listener listeners[MAX_LISTENERS];
    size_t listener_count;
    struct park parks[MOSNHOOK_MAX_PARKS];
    size_t park_count;
    struct mosnhook_address *own;
    size_t own_count;
    struct mosnhook_page *page;
    struct accelerator accelerator;

    _Atomic uint32_t connect_ms, idle_ms, header_ms, ejection_ms;
    atomic_bool draining, stopping;
    atomic_uint undrained; /* workers that still accept */
    _Atomic uint64_t next_id;
    atomic_int fds_reserved;
    int fds_limit; /* the process's */
    int fds_budget;
    atomic_bool full;               /* new connections had better not come */
    _Atomic uint64_t full_until_ms; /* at least */

    /* Inboxes of the control thread: stacks to which any worker pushes. */
    _Atomic(struct connection *) opened, closed;
    atomic_size_t unreported;
    int event;
    /* The control thread's own; a worker has them under the lock when it drops reports. */
    pthread_mutex_t reports;
    struct connection *to_report, **to_report_tail, *live;
    size_t live_count;
    struct dp_walk *walks;
    struct dp_dropped dropped;
    struct registry registry;
    struct table *tables[TABLES];
};

/* 0 or -errno; also after a failure it is to be destroyed. */
int worker_create(struct worker *worker, struct dp *dp, unsigned index);
void worker_destroy(struct worker *worker);
/* Before it runs, when all listeners are known. False when out of memory. */
bool worker_prepare(struct worker *worker);
void *worker_run(void *worker);
/* From any thread. */
void worker_wake(struct worker *worker);
/* `which`: see dp_set_routes. */
struct table *worker_table(struct worker *worker, uint32_t which);

/* ---- listeners ---- */

/* Begins to accept. False when out of memory. */
bool listener_watch_all(struct worker *worker);
/* Stops accepting for good; the last worker to do so closes the listeners. */
void listener_leave_all(struct worker *worker);

/* ---- file descriptors ---- */

/* False when there are not enough for connections and pipes. */
bool fds_reserve(struct dp *dp, int count);
void fds_release(struct dp *dp, int count);
/* Those that connections and pipes have, or may need. */
int fds_used(const struct dp *dp);
/* The process or the host has no more, whatever the budget says. */
void fds_ran_out(struct dp *dp, uint64_t now_ms);
/* Says it in the page, and to the control thread, when they are used up or no longer are. True
 * while they are. */
bool fds_look(struct dp *dp, uint64_t now_ms);

/* ---- the stations of a connection ---- */

/* Each takes over the accepted fd. */
void control_accept(struct worker *worker, const struct listener *listener, int fd);
void header_accept(struct worker *worker, const struct listener *listener, int fd);
void netfilter_accept(struct worker *worker, const struct listener *listener, int fd);

/* As these, but there are no descriptors for the connection, which is refused. */
void control_refuse(struct worker *worker, const struct listener *listener, int fd);
void downstream_refuse(struct worker *worker, const struct listener *listener, int fd);

/* Of a connection that is to be closed: its request may have come without having been read. */
void control_take_unread(struct connection *connection);

/* Notes whose connection it is, which the kernel knows, and says whether he may use us. */
bool clients_admit(struct connection *connection);
/* Whether the process is one of the user's. */
bool clients_has_process(uint32_t uid, uint32_t pid);
/* Of a connection that does not say yet what it wants: whether it may take its time. */
bool clients_may_wait(struct connection *connection);
/* It does no more. */
void clients_waited(struct connection *connection);

/* IPPROTO_TCP or IPPROTO_MPTCP; -1 for whatever is no TCP socket. */
int foreign_protocol(int fd);
/* The cookie of the socket's network namespace; 0 where the kernel does not tell (before 5.14). */
uint64_t foreign_namespace(int fd);
/* Whether the socket is in our network namespace, as far as the kernel tells. */
bool foreign_is_here(const struct dp *dp, int fd);
/* Whether that user could stop us anyway. */
bool foreign_is_trusted(const struct dp *dp, uint32_t uid);
/* Closes what the connection's user passed (or not: -1), without waiting, and makes it -1. */
void foreign_close(struct connection *connection, int *fd);
/* The same of the connection of the control socket itself. */
void foreign_close_request(struct connection *connection);
/* The same of the control socket, where connections may still wait. */
void foreign_close_listener(struct dp *dp, int fd);
/* NULL when out of memory. */
struct reapers *reapers_create(void);
void reapers_release(struct reapers *reapers); /* NULL is allowed */
/* Descriptors that are not closed yet. */
int reapers_pending(const struct reapers *reapers);
/* A timer's: no request or header came in time. */
void arrival_expired(struct timer *timer);
/* Of a downstream that waits for its upstream. */
void downstream_waits(struct connection *connection);

/* Chooses route and endpoint; expects source and original_destination to be set. DP_END_NONE, or
 * why it is refused. */
enum dp_end upstream_route(struct connection *connection, bool *direct);
/* Makes the next endpoint that has not been tried the upstream: false when there is none. Those
 * that are ejected come last. */
bool upstream_next_endpoint(struct connection *connection);
/* Routes and connects; expects source and original_destination to be set. */
void upstream_start(struct connection *connection);
void upstream_release(struct connection *connection);

/* A request that only asks. */
void direct_ask(struct connection *connection);
void direct_take_reused(struct worker *worker);
void direct_release(struct connection *connection);
bool direct_lists(const struct connection *connection);
void direct_unsubscribe(struct worker *worker);
void direct_close_table(struct worker *worker);
/* For the control thread: asks the kernel about the live ones, and counts them. */
void direct_look(struct dp *dp);
size_t direct_count(const struct dp *dp);

/* Opens a park on park->address (its port is ignored), and stores where it is. 0 or -errno. */
int park_open(struct park *park);
void park_close(struct park *park);
/* Whether the application's socket is parked at one of ours; sets source and park. */
bool park_inspect(struct connection *connection);
/* A timer's: the application's socket was not completed in time. */
void completing_expired(struct timer *timer);
/* Connects the parked socket of the application to us: PHASE_COMPLETING. */
void park_complete(struct connection *connection);
/* The application's socket is connected to us, parked or not: goes on to relay, or to the upstream
 * if that is not connected yet. */
void downstream_completed(struct connection *connection);
/* Makes the parked socket fail. True if that takes a moment, after which the connection is closed
 * with what connection->end and error say: to be PHASE_FAILING until then. */
bool park_fail(struct connection *connection, int error);
/* Before the connection is closed, for whatever reason: makes its socket fail at once if it is
 * still parked at one of ours, even if its request was never understood. */
void park_abandon(struct connection *connection, int error);

/* A request whose socket is neither parked nor connected. */
void unparked_start(struct connection *connection);
/* Lets the application connect it to us: PHASE_COMPLETING, or PHASE_EXPECTED. */
void unparked_await(struct connection *connection);

/* What epoll says about what there is to read; of a side that is not relayed yet, too. */
void relay_note_events(struct connection *connection, int side, uint32_t events);
void relay_start(struct connection *connection);
void relay_release(struct connection *connection); /* frees buffers */
void relay_close_pool(struct worker *worker);

/* Whatever was passed on without relay.c counts as passed on by it. */
void relay_count_bytes(struct connection *connection, int from, size_t bytes);
/* The connection's only timer while it is relayed. */
void relay_expired(struct timer *timer);

/* ---- acceleration; all but the first two are for accelerated connections ---- */

/* While the application's own socket is still in our hands. */
void accelerate_prepare(struct connection *connection);
/* How often it may be tried to accelerate the connection; 0: it is of another kind. */
uint8_t accelerate_tries(const struct connection *connection);
/* For connections that are `accelerable`. */
void accelerate_if_it_pays(struct connection *connection);
/* Of a connection, accelerated or not: a direction is to be spliced from now on, or copied again.
 * False where it cannot be spliced. */
bool accelerate_splice(struct connection *connection, int from);
void accelerate_copy(struct connection *connection, int from);
/* Of a connection, accelerated or not: whether redirected bytes and those that came by TCP wait in
 * two queues, so that a short read does not mean that there is no more. */
bool accelerate_reads_both(const struct connection *connection, int from);
/* The relay sent these bytes, which came by TCP, to the upstream. */
void accelerate_forwarded(struct connection *connection, size_t bytes);
/* The relay sent to the application; `redirected_before`: accelerate_redirected() before that. */
void accelerate_sent(struct connection *connection, bool bulk, uint64_t redirected_before);
uint64_t accelerate_redirected(const struct connection *connection);
/* It goes back to the relay: from here on nothing is redirected. */
void accelerate_leave(struct connection *connection);
/* That side's socket takes bytes again. */
void accelerate_writable(struct connection *connection, int to);
/* Whether nothing is to be relayed to that side for now: it is behind. */
bool accelerate_waits(struct connection *connection, int to);
/* Accounts. Returns when to come back, in ms. */
uint64_t accelerate_tick(struct connection *connection);
/* Before its sockets are closed, and after. */
void accelerate_stop(struct connection *connection);
void accelerate_release(struct connection *connection);
void accelerator_close(struct accelerator *accelerator); /* also one that was never opened */

/* connect() of a non-blocking socket: 0 when it is connected already, as mostly on this host, where
 * the handshake is over when connect() returns; else -errno, with -EINPROGRESS. */
int connect_socket(int fd, const struct mosnhook_address *to);
int tune_socket(int fd); /* TCP_NODELAY, keepalive, reset on close; 0 or -errno */
/* For a socket that is not connected yet, and will be with another one of this host: there is no
 * network in between whose congestion could be controlled. What the host does about networks only
 * costs here: BBR paces, and takes a path without a delay for one that holds nothing. Reno does the
 * least, and is in every kernel for everybody; where it is not, the default does. */
void tune_for_this_host(int fd);
/* The same for a socket of ours, which takes little that it cannot send: with the kernel's own
 * sizing, for distances that are none here, a sender would go on for many MiB whose receiver has
 * stopped reading. */
void tune_towards_this_host(int fd);

#endif
