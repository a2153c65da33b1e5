/* A session: a downstream connection with its identity, from the moment it is accepted until it
 * is reported. How it came, `ops` knows; who serves it, `service`. */
#ifndef PYSIDECAR_INTERCEPT_SESSION_H
#define PYSIDECAR_INTERCEPT_SESSION_H

#include <stdatomic.h>

#include "loop/worker.h"
#include "net/channel.h"
#include "upstream/origin.h"

struct flow_ops;
struct listener;
struct session;
struct tunnel;

/* In the order in which the control thread may read more of it: see struct session. */
enum session_state {
    SESSION_ARRIVING,   /* it has not said what it wants */
    SESSION_EXPECTED,   /* the application's own connection to us, before there is an upstream */
    SESSION_CONNECTING, /* its upstream is being connected */
    SESSION_COMPLETING, /* the application's socket is being connected to us */
    SESSION_FAILING,    /* the application's socket is being failed, which takes a moment */
    SESSION_SERVED,
    SESSION_DIRECT, /* not here: between the application and the upstream */
    SESSION_CLOSED,
};

/* A way in which connections come to us: one for each enum dp_transport. */
struct intercept {
    const char *name;
    uint8_t fds; /* that a connection may need at most */
    bool is_tcp; /* its listeners are TCP sockets, else Unix ones */
    /* Takes over an accepted descriptor. */
    void (*accept)(struct worker *worker, const struct listener *listener, int fd);
    /* The same, but there are no descriptors for the connection, which is refused. */
    void (*refuse)(struct worker *worker, const struct listener *listener, int fd);
};

/* How a session that came is completed, or refused. */
struct intercept_ops {
    /* Its upstream is connected: connects the application to us, and calls session_completed(), now
     * or later; or refuses or closes it. */
    void (*complete)(struct session *session);
    /* Makes the application's connect fail with that errno (`away`: for a reason of ours; it is to
     * do what it does while there is no sidecar). True if that takes a moment, after which ops
     * calls session_close() with what session->end and error say. NULL: to close it is all there
     * is. */
    bool (*refuse)(struct session *session, int error, bool away);
    /* It is being closed, whyever: nobody may be left waiting for it. NULL: nobody can. */
    void (*abandon)(struct session *session, int error);
    /* Frees what is the intercept's of it. NULL: nothing is. */
    void (*release)(struct session *session);
};

/* Who serves a session, once it is known where it wants to go. */
struct service {
    /* The application is connected to us. */
    void (*completed)(struct session *session);
    /* It is being closed: with a reset, or in order. Both channels are closed by the service. */
    void (*close)(struct session *session, bool reset);
};

/* What the composition decides: see api/. */
struct session_handler {
    /* Gives it an id, and makes it known to the control thread. */
    void (*opened)(struct session *session);
    /* Sets its action. */
    void (*decided)(struct session *session, enum dp_action action);
    /* All is known of it: reports it, before it is SESSION_CLOSED. */
    void (*closed)(struct session *session);
    /* It is known where it wants to go, and it is SESSION_CONNECTING: picks a service. */
    void (*arrived)(struct session *session);
    /* It only asks whether it may go there itself, see intercept/control.h. */
    void (*asks)(struct session *session);
    /* The application's own socket, which is connected to us, is at hand for the last time. */
    void (*let_go)(struct session *session, int application);
    /* What stands beside the flows of a tunnel that is about to relay; NULL: nothing. */
    const struct flow_ops *(*flow_ops)(const struct tunnel *tunnel);
};

/* `state` is stored with release order after the fields that the control thread may read from then
 * on: original destination, process, route from SESSION_CONNECTING; the source too, but of a socket
 * that came unparked from SESSION_COMPLETING, and never in SESSION_DIRECT; upstream from
 * SESSION_SERVED; everything once closed. */
struct session {
    struct worker *worker;
    const struct intercept_ops *ops;
    const struct service *service; /* NULL: nobody serves it yet */
    void *intercepted;             /* that is `ops`'s */
    void *served;                  /* that is `service`'s; freed with the session if it is left */
    struct session *next_opened;   /* see api/inbox.h */
    struct session *next_closed;   /* the worker's list of what is to be freed */
    struct session *live_next, *live_previous; /* under the inbox's lock */

    struct origin origin;
    struct mosnhook_address upstream;
    struct channel downstream;
    struct timer timer; /* of the state that it is in */

    uint64_t id;
    uint64_t opened_real_ns, opened_ns, closed_ns;
    _Atomic uint64_t bytes[2]; /* by enum flow_from; written by the worker */
    _Atomic uint32_t rtt_us;
    uint32_t pid, uid;
    _Atomic uint32_t route; /* chosen, like `action`, once it is SESSION_CONNECTING */
    uint32_t header_size;   /* of the PROXY header; 0: there was none */
    int32_t error;
    _Atomic uint8_t state;  /* enum session_state */
    _Atomic uint8_t path;   /* enum dp_path */
    _Atomic uint8_t action; /* enum dp_action */
    uint8_t end;
    uint8_t fds_reserved;
    bool waiting;     /* counted by clients_may_wait */
    bool hooked;      /* our hook is in the application */
    bool late_source; /* the worker knows the source only from SESSION_SERVED on */
    char command[MOSNHOOK_COMMAND_SIZE];
};

/* A new session that is known to the control thread, for which so many fds are reserved; or NULL
 * (out of memory), and they are no longer. */
struct session *session_open(struct worker *worker, const struct listener *listener,
                             const struct intercept_ops *ops, uint8_t fds);
/* It is known where it wants to go. */
void session_arrived(struct session *session);
/* The application is connected to us. */
void session_completed(struct session *session);
/* Closes everything that it holds, and reports it; it is freed after this turn of the loop. Further
 * calls change nothing. Peers get a reset, unless it ended in order. */
void session_close(struct session *session, enum dp_end end, int error);
/* Tells the application that its connect failed, then closes. */
void session_refuse(struct session *session, enum dp_end end, int error);
void session_enter(struct session *session, enum session_state state);
void session_release_fds(struct session *session, uint8_t keep);
/* A timer's: no request or header came in time. */
void session_arrival_expired(struct timer *timer);
/* A timer's: the application's socket was not completed in time. */
void session_completing_expired(struct timer *timer);
/* Watches a downstream that waits for its upstream. */
void session_downstream_waits(struct session *session);
/* Frees a closed one. */
void session_free(struct session *session);

/* For sessions whose downstream is connected from the beginning. */
extern const struct intercept_ops intercept_connected;
/* intercept.refuse of these. */
void session_refuse_connected(struct worker *worker, const struct listener *listener, int fd);

static inline enum session_state session_state(const struct session *session)
{
    return atomic_load_explicit(&session->state, memory_order_relaxed);
}

#endif
