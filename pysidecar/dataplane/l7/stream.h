/* A stream: one request, from its head to the end of its answer. Its files are stream.c (its life,
 * time and end), stream_route.c (where it goes), stream_request.c (what is sent of it) and
 * stream_answer.c (what comes back); sides.h has what they write to.
 *
 * It is told what comes from both sides, and owns neither: the downstream has it in its list, and
 * the uplink that it is sent on knows it until the answer is complete. However it ends, it is
 * answered once, reported once, and leaves both. */
#ifndef PYSIDECAR_L7_STREAM_H
#define PYSIDECAR_L7_STREAM_H

#include "l7/buffer.h"
#include "l7/codec.h"
#include "l7/shadow.h"
#include "loop/timer.h"

struct downstream;
struct downstream_side;
struct endpoint;
struct http2_stream;
struct pool;
struct streams;
struct service;
struct span;
struct uplink;
struct upstream_side;

enum { MOST_ATTEMPTS = 4 }; /* endpoints that are tried for a request */

struct stream {
    struct stream *next, **previous; /* in the downstream's list, or those that are spare */
    struct stream *next_waiting,
        **waiting; /* in the pool's queue; waiting == NULL: it is in none */
    /* In the worker's list of those that wait for a service; wanting == NULL: it is not. */
    struct stream *next_wanting, **wanting;
    uint64_t wanted; /* a hash of that service's name */
    struct downstream *downstream;
    const struct downstream_side *down; /* how its answer is written */
    const struct upstream_side *up;     /* how its request is written; NULL: not known yet */
    const struct codec *codec;          /* likewise: that of its uplink */
    struct pool *pool;                  /* where it waits, or was sent; NULL: nowhere yet */
    struct uplink *uplink;   /* NULL: it was not sent, or does not wait for an answer any more */
    struct service *service; /* referenced; NULL: it goes to the original destination */
    /* The last one is the pool's. NULL: the original destination. */
    struct endpoint *tried[MOST_ATTEMPTS];
    struct http2_stream *from, *to; /* HTTP/2: of the client's connection, of the uplink's */
    uint32_t tried_count;
    uint64_t id, upstream_id; /* of frames */
    uint64_t hash;            /* see service_pick */
    uint64_t began_ns;        /* CLOCK_MONOTONIC */
    uint64_t tried_ns;        /* when the endpoint that is tried was picked */
    struct timer timer;       /* for the answer */
    uint64_t answer_at_ms;    /* when all of it has to be there; UINT64_MAX: whenever */
    uint64_t complete_ms;     /* when the request was read to its end */
    struct facts facts;
    struct encoder encoder; /* of the request */
    /* To be sent later or again: the head as it is sent, then the body without any framing. While
     * it waits for a service: the head as it came. */
    struct buffer request;
    uint32_t head_bytes;                  /* of it */
    uint32_t counted_bytes;               /* that the downstream counts as its request's */
    uint64_t written_before, read_before; /* on the uplink, when the request was given to it */
    uint64_t answer_at; /* where the answer begins among what was written to the downstream */
    /* Only within stream_begin, for frames: the request as it came, to be encoded where it goes. */
    const struct message *fresh;
    struct adjustment *adjustment;
    size_t fresh_room;
    uint32_t reset_code; /* HTTP/2: that either side has reset it with; 0: none */
    bool idempotent, oneway;
    bool has_grpc_status;
    uint8_t grpc_status;
    /* What its service and its rule say against failures: stream_attempts.c, shadow.c. */
    struct stream *twin, *first; /* hedging: of a client's stream, and of its twin */
    struct service *mirror;      /* referenced: a copy goes there; NULL: not, or not any more */
    uint64_t resume_at_ms;       /* it waits until then before it is sent; 0: it does not */
    uint64_t attempt_at_ms; /* when the answer to this attempt has to have begun; 0: whenever */
    uint64_t hedge_at_ms;   /* when it gets a twin; 0: never */
    uint32_t delay_ms, hedge_ms; /* of its rule; 0: none */
    enum dp_flag failed;         /* why it is sent again, if nothing comes of that */
    uint8_t retries;             /* attempts after failures */
    enum shadow shadow;
    bool in_load, in_retries; /* it is counted in the load of its service */
    bool held;                /* by a fault */
    bool awaits_twin;         /* its own attempt is over */
    bool direct; /* it goes where the client connected to, on an uplink of its connection's own */
    bool reused; /* the uplink had carried other requests before */
    bool retried;
    uint8_t unprocessed; /* how often it was sent again since nothing was done for it */
    bool binds;          /* its uplink may be its user's afterwards: nobody else gets it */
    bool complete;       /* the request was read to its end */
    bool keeps;          /* `request` has all that was read so far */
    bool answering;      /* the head of an answer was passed on */
    bool answered;       /* all of it was, and the request goes on */
    bool timed;          /* a place for its timer is reserved */
    bool ended;
    struct span *span; /* NULL: it is not sampled */
    struct dp_request record;
};

/* Begins a request, whose head this is, of `consumed` bytes. It may be over when this returns. */
void stream_begin(struct downstream *downstream, const struct message *request, size_t consumed);
/* What follows of the request: DATA, END. */
void stream_request_data(struct stream *stream, const struct message *message, size_t consumed);
void stream_request_end(struct stream *stream, const struct message *message, size_t consumed);
/* The request cannot be understood any more. */
void stream_request_malformed(struct stream *stream, const struct message *message);
/* The head of a request that cannot be understood, for which `request` has what is known of it. */
void stream_refuse(struct downstream *downstream, const struct message *request,
                   const struct message *problem);
/* It has waited for too long. */
void stream_expire(struct stream *stream);
/* The downstream is being closed. */
void stream_abandon(struct stream *stream, enum dp_flag why);

/* It has to wait in the pool: what it is to send is kept. False when out of memory. */
bool stream_keep(struct stream *stream);
/* The pool has an uplink for it: sends the request. */
void stream_assigned(struct stream *stream, struct uplink *uplink);
/* The pool has none. `error`: a positive errno of the connect, or 0. */
void stream_unassigned(struct stream *stream, enum dp_flag why, int error);

/* What the uplink brings of the answer. */
void stream_response(struct stream *stream, enum codec_event event, const struct message *message,
                     size_t size);
void stream_response_spliced(struct stream *stream, size_t bytes);
/* The uplink is gone before the answer was complete. */
void stream_uplink_lost(struct stream *stream, enum dp_flag why);
/* Whether anything was done for a request that is reset. */
enum processed {
    PROCESSED_PERHAPS,
    PROCESSED_REFUSED, /* no */
    PROCESSED_AWAY,    /* no: its connection goes away, or took fewer than could be known */
};

/* It has reset the stream alone, with a code of HTTP/2. */
void stream_uplink_reset(struct stream *stream, uint32_t code, enum processed processed);
/* The uplink takes more of the request again; the downstream takes more of the answer. */
void stream_uplink_sent(struct stream *stream);
void stream_downstream_sent(struct stream *stream);

/* It goes on as a tunnel, which has its uplink's descriptor. */
void stream_upgraded(struct stream *stream);
/* There is another table: those that wait for a service may have one. */
void streams_ask_again(struct streams *streams);
/* At the end of the turn in which it ended. */
void stream_free(struct streams *streams, struct stream *stream);

#endif
