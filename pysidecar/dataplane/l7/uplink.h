/* An upstream connection of a pool. */
#ifndef PYSIDECAR_L7_UPLINK_H
#define PYSIDECAR_L7_UPLINK_H

#include "l7/pool.h"
#include "l7/wire.h"
#include "upstream/connector.h"

enum { UPLINK_BEHIND_BYTES = 256 * 1024 }; /* that wait to be sent: it takes no further request */

struct uplink {
    struct uplink *next, **previous; /* in the pool's list, or those that ended */
    struct pool *pool;
    struct connector *connector; /* while it is being connected */
    struct channel channel;
    struct wire wire;
    struct downstream *owner; /* the only one whose requests it takes; NULL: see pool_is_shared */
    struct stream *stream;    /* the one under way, where the codec does not multiplex */
    struct stream **streams;  /* those under way, where it does; by the low bits of their ids */
    struct http2 *http2;      /* NULL: it speaks something else */
    uint32_t slots, busy;
    uint32_t next_id;
    uint64_t used_ms;      /* when it had a request last */
    uint64_t heartbeat_ms; /* when one was sent that is not answered; 0: none */
    bool used;             /* a request was sent on it */
    bool leaving;          /* gets no further request */
    bool shutting;         /* its write side is shut once all is sent */
    bool closed;
};

/* Begins to connect. False when out of memory or descriptors. */
bool uplink_open(struct pool *pool);
/* Nothing may be under way. With a reset, or in order. */
void uplink_close(struct uplink *uplink, bool reset);
/* Whether it can take a request. */
bool uplink_is_ready(const struct uplink *uplink);
/* HTTP/2: it may be ready again. */
void uplink_has_room(struct uplink *uplink);
/* HTTP/2: the upstream takes no further request on it. */
void uplink_goes_away(struct uplink *uplink);
/* The stream's request is about to be written; its id is upstream_id. False when out of memory. */
bool uplink_begin(struct uplink *uplink, struct stream *stream);
/* The stream does not wait for an answer any more, which was complete or not. */
void uplink_leave(struct uplink *uplink, struct stream *stream, bool complete);
/* The stream `now` waits for the answer instead of `before`, whose request was the same. */
void uplink_replace(struct uplink *uplink, struct stream *before, struct stream *now);
/* Nothing more is sent on it than what waits: it is told so. */
void uplink_shut(struct uplink *uplink);
/* Gives its descriptor away, which nobody watches, and is closed. */
int uplink_take_fd(struct uplink *uplink);
/* At the end of the turn in which it was closed. */
void uplink_free(struct uplink *uplink);
/* Sends a heartbeat where one is due; closes it where the last one was not answered. */
void uplink_look(struct uplink *uplink);

#endif
