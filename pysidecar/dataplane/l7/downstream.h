/* Serves a session by understanding its requests: each becomes a stream. */
#ifndef PYSIDECAR_L7_DOWNSTREAM_H
#define PYSIDECAR_L7_DOWNSTREAM_H

#include "intercept/session.h"
#include "l7/stream.h"
#include "l7/wire.h"
#include "upstream/choice.h"

struct share;

struct downstream {
    struct session *session;
    struct downstream *next, **previous; /* in the worker's list, or those that ended */
    struct wire wire;
    struct http2 *http2;                /* NULL: it speaks something else */
    const struct downstream_side *side; /* of its streams */
    struct task task;                   /* to end, or to go on as a tunnel */
    struct choice choice;               /* of the session: where requests go without a service */
    enum dp_protocol protocol;          /* DP_AUTO: still to be found out */
    uint32_t detect_ms, undetected;     /* as in struct dp_route */
    struct uplink *own; /* the original destination's, for nobody else; NULL: none */
    struct pool *pool;  /* likewise, with HTTP/2; NULL: none */
    struct stream *streams;
    uint32_t stream_count;
    uint64_t frame_bytes;   /* of those requests, as they began */
    uint64_t counted[2];    /* bytes that the session was told of, by the side that is read */
    uint64_t head_since_ms; /* when a head began that is not complete; 0: there is none */
    uint64_t linger_until_ms, linger_left; /* when it ends; bytes that are dropped until then */
    struct share *share;                   /* see downstream_share(); NULL: not known yet */
    /* While the worker drains, 0 before. HTTP/2: from when on no further request is taken. Frames:
     * from when on it ends in the first moment without one. */
    uint64_t final_ms;
    uint64_t tick_ms; /* when its acceleration wants to be looked at; 0: never */
    uint64_t look_ms; /* HTTP/2: when to look at what the client does not take; 0: never */
    /* HTTP/2: since when the client has taken nothing of what waits on the wire (0: nothing does),
     * and how much it had taken then. */
    uint64_t unsent_since_ms, sent_then;
    uint32_t requests;  /* that it has brought */
    bool unaccelerated; /* it may be accelerated, once that pays */
    bool closing;       /* no further request: it ends when what waits is sent */
    bool between;       /* it is, for no other reason than that no request was under way */
    bool lingering;     /* its write side is shut; what still comes is dropped */
    bool upgrading;
};

/* Serves a session that has arrived. Takes over the choice. */
void downstream_start(struct session *session, const struct choice *choice,
                      enum dp_protocol protocol, uint32_t detect_ms, uint32_t undetected);
/* A stream has ended, and was answered (or gets no answer). */
void downstream_answered(struct downstream *downstream);
/* An answer cannot be completed: the client has to see that. */
void downstream_cut(struct downstream *downstream, enum dp_end end);
/* HTTP/2: no further request is taken, since its own uplink takes none. */
void downstream_go_away(struct downstream *downstream);
/* Its own uplink has ended, with no request under way on it any more. */
void downstream_deserted(struct downstream *downstream);
/* A complete request waits: where the client has left or sends nothing more, whoever is to answer
 * learns of it. */
void downstream_pass_end(struct downstream *downstream);
/* Reads on, or no longer, as its streams now are. */
void downstream_update(struct downstream *downstream);
/* The stream's answer, which was passed on, says that the connection goes on as another protocol.
 */
void downstream_upgrade(struct downstream *downstream, struct stream *stream);
/* The worker drains: what is idle ends. */
void downstream_drain(struct downstream *downstream);
bool downstream_is_draining(const struct downstream *downstream);
/* That of its client. */
struct share *downstream_share(struct downstream *downstream);

#endif
