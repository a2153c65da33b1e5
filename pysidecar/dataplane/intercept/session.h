/* A session: a downstream connection with its identity, from accepting until its report. `ops`
 * knows how it came, `serving` serves it. */
#ifndef PYSIDECAR_INTERCEPT_SESSION_H
#define PYSIDECAR_INTERCEPT_SESSION_H

#include <stdatomic.h>

#include "loop/worker.h"
#include "net/channel.h"
#include "upstream/origin.h"

struct dp_request;
struct dp_span;
struct endpoint;
struct flow_ops;
struct listener;
struct session;
struct standing;
struct tunnel;

/* In the order in which the control thread may read more of it, see struct session. */
enum session_state {
    SESSION_ARRIVING,   /* it has not said yet what it wants */
    SESSION_EXPECTED,   /* the application is to connect to us, before there is an upstream */
    SESSION_CONNECTING, /* its upstream is being connected */
    SESSION_COMPLETING, /* the application's socket is being connected to us */
    SESSION_FAILING,    /* the application's socket is being failed, which takes a moment */
    SESSION_SERVED,
    SESSION_DIRECT, /* the application is connected to the upstream itself */
    SESSION_CLOSED,
};

/* How connections of a transport are accepted: one for each enum dp_transport. */
struct intercept {
    uint8_t fds; /* descriptors that a connection may need at most */
    bool is_tcp; /* its listeners are TCP sockets, not Unix ones */
    /* Takes over an accepted descriptor. */
    void (*accept)(struct worker *worker, const struct listener *listener, int fd);
    /* Takes over a descriptor and refuses the connection, for which there are no more. */
    void (*refuse)(struct worker *worker, const struct listener *listener, int fd);
};

/* How a session is completed or refused. */
struct intercept_ops {
    /* The upstream is connected: connects the application to us and calls session_completed(), now
     * or later; or refuses or closes the session. */
    void (*complete)(struct session *session);
    /* Makes the application's connect fail with `error`; with `away`, the reason is ours, and the
     * hook does what it does without a sidecar. True if that takes a moment, after which the ops
     * call session_close() with session->end and error. NULL where closing is all that can be done.
     */
    bool (*refuse)(struct session *session, int error, bool away);
    /* The session is being closed, for whatever reason: nobody may be left waiting for it. NULL
     * where nobody can be. */
    void (*abandon)(struct session *session, int error);
    /* Frees session->intercepted. NULL if there is nothing to free. */
    void (*release)(struct session *session);
};

/* Who serves a session, once its original destination is known. */
struct serving {
    /* The application is connected to us. */
    void (*completed)(struct session *session);
    /* The session is being closed, with a reset or in order: releases what is the server's. */
    void (*close)(struct session *session, bool reset);
};

/* What the composition decides, see api/dataplane.c. */
struct session_handler {
    /* Gives the session an id, and makes it known to the control thread. */
    void (*opened)(struct session *session);
    /* Sets its action. */
    void (*decided)(struct session *session, enum dp_action action);
    /* Reports the session, of which all is known, before it is SESSION_CLOSED. */
    void (*closed)(struct session *session);
    /* The original destination is known, the state is SESSION_CONNECTING: picks who serves it. */
    void (*arrived)(struct session *session);
    /* The application asks whether it may connect itself, see intercept/control.h. */
    void (*asks)(struct session *session);
    /* The application's socket is connected to us, and about to be closed here. */
    void (*let_go)(struct session *session, int application);
    /* A request of a session ended: reports it. NULL: it reached no service, or no endpoint. */
    void (*request_ended)(struct session *session, const struct dp_request *request,
                          struct standing *standing, struct endpoint *endpoint);
    /* Likewise of a copy of a request, which went to a mirror: only counts it. */
    void (*copy_ended)(struct worker *worker, const struct dp_request *request,
                       struct standing *standing, struct endpoint *endpoint);
    /* After request_ended, where it was sampled: reports its span. */
    void (*span_ended)(struct session *session, const struct dp_span *span);
    /* What stands beside the flows of a tunnel that is about to relay, or NULL. */
    const struct flow_ops *(*flow_ops)(struct tunnel *tunnel);
};

/* `state` is stored with release order after the fields that the control thread may read from then
 * on. Original destination, process, route: from SESSION_CONNECTING. Source: too, but from
 * SESSION_SERVED if the socket came unparked, and never in SESSION_DIRECT. Upstream: from
 * SESSION_SERVED. Everything: once closed. */
struct session {
    struct worker *worker;
    const struct intercept_ops *ops;
    const struct serving *serving; /* NULL until it is picked */
    void *intercepted;             /* `ops`'s own */
    void *served;                  /* `serving`'s own; freed with the session if still set */
    struct session *next_opened;   /* see api/inbox.h */
    struct session *next_closed;   /* in the worker's list of sessions to free */
    struct session *live_next, *live_previous; /* under the inbox's lock */

    struct origin origin;
    struct mosnhook_address upstream;
    struct channel downstream;
    struct timer timer; /* of the current state */

    uint64_t id;
    uint64_t opened_real_ns, opened_ns, closed_ns;
    _Atomic uint64_t bytes[2]; /* by the side that is read; the worker writes them */
    _Atomic uint32_t rtt_us;
    uint32_t pid, uid;
    _Atomic uint32_t route; /* chosen, like `action`, in SESSION_CONNECTING */
    uint32_t header_size;   /* bytes of the PROXY header; 0 if there was none */
    int32_t error;
    _Atomic uint8_t state;  /* enum session_state */
    _Atomic uint8_t path;   /* enum dp_path */
    _Atomic uint8_t action; /* enum dp_action */
    uint8_t end;
    uint8_t fds_reserved;
    bool waiting;     /* counted by clients_may_wait */
    bool shares;      /* its descriptors are counted by clients_may_have_fds */
    bool hooked;      /* our hook is in the application */
    bool late_source; /* the worker knows the source only from SESSION_SERVED on */
    char command[MOSNHOOK_COMMAND_SIZE];
};

/* Opens a session, for which the caller has reserved `fds` descriptors. NULL when out of memory:
 * then they are released. */
struct session *session_open(struct worker *worker, const struct listener *listener,
                             const struct intercept_ops *ops, uint8_t fds);
/* The intercept knows the original destination. */
void session_arrived(struct session *session);
/* The application is connected to us. */
void session_completed(struct session *session);
/* Closes everything that the session holds, and reports it; once, no caller may close it again.
 * Peers get a reset, unless it ended in order. It is freed after this turn of the loop. */
void session_close(struct session *session, enum dp_end end, int error);
/* Makes the application's connect fail, then closes. One that is closed stays that. */
void session_refuse(struct session *session, enum dp_end end, int error);
void session_enter(struct session *session, enum session_state state);
void session_release_fds(struct session *session, uint8_t keep);
/* For session->timer: no request or header came in time. */
void session_arrival_expired(struct timer *timer);
/* For session->timer: the application's socket was not completed in time. */
void session_completing_expired(struct timer *timer);
/* From here on the downstream waits for its upstream: closes the session if it is reset. */
void session_downstream_waits(struct session *session);
/* Frees a closed session. */
void session_free(struct session *session);

/* For sessions whose downstream is connected from the beginning. */
extern const struct intercept_ops intercept_connected;
/* Opens one, whose descriptors are reserved. NULL where it has ended already. */
struct session *session_accept(struct worker *worker, const struct listener *listener, int fd);
/* It knows its original destination; or an error (-errno) has kept it from that. */
void session_accepted(struct session *session, int error);
/* intercept.refuse for such sessions. */
void session_refuse_connected(struct worker *worker, const struct listener *listener, int fd);

static inline enum session_state session_state(const struct session *session)
{
    return atomic_load_explicit(&session->state, memory_order_relaxed);
}

#endif
