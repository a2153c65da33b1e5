/* A connection that speaks HTTP/2: libnghttp2 reads and writes its frames, and keeps its rules; it
 * does no I/O. What comes waits here until the other side of its stream takes it, and is given
 * credit for only then; what goes waits here until the peer gives credit. */
#ifndef PYSIDECAR_L7_HTTP2_H
#define PYSIDECAR_L7_HTTP2_H

#include "l7/http2_past.h"
#include "l7/wire.h"

struct downstream;
struct http2_session; /* libnghttp2's */
struct share;
struct stream;
struct uplink;

/* One of its streams. Outlives ours: while answers are sent, or the peer has not ended it. */
struct http2_stream {
    struct http2_stream *next, **previous; /* in the connection's list, or those that are spare */
    struct http2 *http2;
    struct stream *stream; /* NULL: it has ended, or has not begun */
    int32_t id;
    struct buffer in;          /* that came and was not passed on */
    struct buffer in_trailers; /* a block; likewise */
    struct buffer out;         /* that is to be sent */
    struct buffer out_trailers;
    const uint8_t *lent; /* that is to be sent before `out`, in the memory of who writes it now */
    size_t lent_size;
    uint32_t reset_code; /* what it is ended with, where we end it */
    uint32_t passed;     /* bytes of the answer that its client has taken; see is_wide */
    uint64_t active_ms;  /* when DATA came or went last */
    /* Since when the peer has not taken what waits in `out` (0: nothing does), but for `taken`
     * bytes. */
    uint64_t unsent_since_ms;
    uint32_t taken;
    uint32_t charged;    /* bytes of its buffers, that `share` counts */
    struct share *share; /* of a client; NULL: it has no buffers */
    bool in_ended;       /* nothing more comes */
    bool in_reset;       /* likewise: the peer has reset it */
    bool out_ended;      /* nothing more is written */
    bool end_sent;       /* END_STREAM has been written */
    bool deferred;       /* libnghttp2 waits to be told that there is something to send */
    uint8_t locks;       /* of those on the stack that go on with it */
    bool passing;        /* `in` is being passed on */
    bool behind;         /* who writes waits until `out` is sent */
    bool closed;         /* libnghttp2 knows it no longer */
    bool is_reset;       /* by us, and not by libnghttp2 for what the peer did */
    bool is_wide;        /* it has all of the credit that a stream may have */
    bool is_early;       /* a request, sent before the server has said how many it takes */
    uint8_t interim;     /* heads of interim answers that wait to be sent */
};

struct http2 {
    struct http2_session *session;
    struct wire *wire;
    struct downstream *downstream; /* it is a client's; else NULL */
    struct uplink *uplink;         /* it is to a server; else NULL */
    struct http2_stream *streams;
    uint32_t stream_count;
    struct buffer head; /* the block that is being read */
    uint32_t head_bytes, head_fields;
    uint32_t idle_frames; /* that bring nothing, of late */
    uint32_t updates;     /* of windows, that DATA has earned */
    uint64_t out_bytes;   /* of all streams, that wait to be sent */
    uint64_t refilled_ms;
    uint32_t fault;         /* of the peer, for which we end it: an error of RFC 9113, 7 */
    struct http2_past past; /* of a client's streams */
    bool head_is_too_large;
    bool settled;         /* the peer's SETTINGS have come */
    bool head_is_refused; /* its stream was: it is read for the sake of the next ones */
    bool greets;          /* an upstream; a client that has sent something: only then we speak */
    bool inside;          /* libnghttp2 is on the stack */
    bool noticed;         /* a client was told that the end is near */
    bool goes_away;       /* either side has said so: no further streams */
    bool closed;          /* freed once nobody on the stack uses it */
    bool broken;          /* nothing is read any more; what is there is sent, then it ends */
};

/* Whether it was there when we were built. */
bool http2_is_built_in(void);
/* NULL when out of memory. */
struct http2 *http2_open_downstream(struct downstream *downstream);
struct http2 *http2_open_uplink(struct uplink *uplink);
/* No stream of ours may be on it. NULL: nothing. */
void http2_close(struct http2 *http2);

/* As codec.decode, of everything: for wire_ops.take. */
size_t http2_take(struct http2 *http2, const uint8_t *data, size_t size);
/* Writes frames to the wire, as many as it takes for now. */
void http2_fill(struct http2 *http2);
/* Whether there is more to write. */
bool http2_wants_to_write(const struct http2 *http2);
/* Whether nothing more will be read or written. */
bool http2_is_over(const struct http2 *http2);
/* Tells the peer that the end is near; that no further stream is taken. */
void http2_notice(struct http2 *http2);
void http2_go_away(struct http2 *http2);
/* That it ends now, with an error of RFC 9113, 7; the wire is still to be flushed. */
void http2_say_goodbye(struct http2 *http2, uint32_t error);

/* Whether the client has still to take something. */
bool http2_has_unsent(const struct http2 *http2);
/* Resets streams whose client has taken too little for too long. */
void http2_drop_not_taken(struct http2 *http2);

/* Of an uplink: whether it takes one more request. */
bool http2_has_room(const struct http2 *http2);
/* Sends a block (see l7/http2_head.h) as the head of a request. NULL: it cannot be. */
struct http2_stream *http2_request(struct http2 *http2, struct stream *stream,
                                   const uint8_t *block);
/* Sends one as that of an answer, or an interim one. False: it cannot be. */
bool http2_respond(struct http2_stream *stream, const uint8_t *block, bool interim);

/* Sends a piece of a body. False when out of memory. */
bool http2_write(struct http2_stream *stream, const void *data, size_t size);
/* Ends it, with trailers (a block) if there are some. */
bool http2_write_end(struct http2_stream *stream, const uint8_t *trailers);
bool http2_is_behind(const struct http2_stream *stream);
/* Passes on what came, as far as the other side takes it. */
void http2_pass_on(struct http2_stream *stream);
/* Our stream has ended: what still comes is dropped. With a reset, unless both directions have. */
void http2_leave(struct http2_stream *stream, bool complete);

void http2_free_spares(struct streams *streams);

#endif
