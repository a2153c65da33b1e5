/* An accelerated session, whoever serves it: attaching it, the pace of those who receive, and going
 * back to plain TCP. See sockmap.h for the whole. */
#ifndef PYSIDECAR_L4_SOCKMAPPED_H
#define PYSIDECAR_L4_SOCKMAPPED_H

#include "intercept/session.h"
#include "l4/accelerator.h"

/* Whether a receiver keeps up. While it does not, we wait for it rather than send by TCP, which
 * would have to be empty before anything could be redirected again. */
enum pace {
    PACE_KEEPS_UP,
    PACE_BEHIND,    /* its window is full */
    PACE_SWITCHING, /* from TCP to redirecting: it has to read everything first */
    PACE_STALLED,   /* it takes too long: TCP takes over */
};

struct receiver {
    enum pace pace;
    uint32_t waiting; /* bytes, at the last poll */
    uint64_t since_ms, progress_ms;
};

/* From the first attempt to attach on. */
struct sockmapped {
    struct session *session;
    struct channel *upstream;               /* NULL: the session has none of its own */
    void (*go_on)(struct session *session); /* a receiver is not waited for any more */
    struct record *record;                  /* NULL if it is not attached */
    unsigned tries;                         /* attempts that are left */
    uint64_t again_at_ms;                   /* not before this is the next attempt */
    uint64_t counted; /* of record->redirected[0]: what is in the session's bytes already */
    uint64_t redirected_before; /* record->redirected[1] before the current write */
    int room;                   /* size of the buffer that redirected bytes go to */
    bool joined;                /* what we send to the application may be redirected */
    uint64_t leaves_at_ms;      /* when it may go back to plain TCP; 0: it stays */
    /* By the side that is sent to. */
    struct receiver receiver[2];
    struct sockmapped *next_polled,
        **previous_polled; /* in the worker's list, while a receiver is waited for */
};

enum { TICK_BUSY_MS = 250, TICK_IDLE_MS = 1000 }; /* how old byte counts may be */

enum attempt_outcome {
    ATTACH_LATER, /* the obstacle may pass: see again_at_ms */
    ATTACH_NEVER,
    ATTACH_DONE,
};

/* Whether a session is of a kind that can be accelerated. */
bool sockmapped_is_for(const struct session *session);
/* Whether its traffic shows that it pays. */
bool sockmapped_pays(const struct session *session, uint32_t round_trips);
/* NULL when out of memory. Without an upstream of its own only `local` is possible. */
struct sockmapped *sockmapped_create(struct session *session, struct channel *upstream,
                                     void (*go_on)(struct session *session));
/* Stops and frees it, attached or not. */
void sockmapped_free(struct sockmapped *mapped);

/* Tries to attach it. When it is done, sockmapped_begin() says what may be redirected. */
enum attempt_outcome sockmapped_attach(struct sockmapped *mapped);
/* `joined`: whether messages to the application may be redirected, or all take TCP. */
void sockmapped_begin(struct sockmapped *mapped, bool joined);
void sockmapped_set_joined(struct sockmapped *mapped, bool joined);

/* Whether nothing may be sent to that side for now. */
bool sockmapped_waits(struct sockmapped *mapped, int to);
/* That side's socket takes bytes again. */
void sockmapped_writable(struct sockmapped *mapped, int to);
void sockmapped_keeps_up(struct sockmapped *mapped, int to);
/* Before something is sent to the application, and after. `bulk`: more will follow at once. */
void sockmapped_sends(struct sockmapped *mapped);
void sockmapped_sent(struct sockmapped *mapped, bool bulk);
/* Bytes that went to the upstream without us since the last call. */
uint64_t sockmapped_take_redirected(struct sockmapped *mapped);

/* Begins to go back to plain TCP, or goes on with it. True: it is there, and to be freed. */
bool sockmapped_leave(struct sockmapped *mapped);
/* Looks after it. Returns when to come back, in ms of the loop's clock; UINT64_MAX: it is back at
 * plain TCP, and to be freed. `busy`: something was redirected since the last call. */
uint64_t sockmapped_tick(struct sockmapped *mapped, bool busy);
/* From a session that was accelerated otherwise, see sockmap_try. NULL if it was not. */
struct sockmapped *sockmapped_take_over(struct session *session);
/* From here on nothing is redirected. */
void sockmapped_stop(const struct sockmapped *mapped);

#endif
