/* What the files of a connection that speaks HTTP/2 share. */
#ifndef PYSIDECAR_L7_HTTP2_PARTS_H
#define PYSIDECAR_L7_HTTP2_PARTS_H

#include "l7/http2.h"
#include "l7/http2_library.h"
#include "l7/streams.h"

#if HAS_LIBNGHTTP2
#include <errno.h>
#include <nghttp2/nghttp2.h>

enum {
    STREAM_WINDOW = 256 * 1024,
    FIRST_UPSTREAM_WINDOW = 64 * 1024, /* of a stream, until its client has taken more than that */
    FRAME_HEAD = 9,
    MOST_PAIRS = MAX_FIELDS + 8,
    NEARLY_LAST_STREAM = 0x7ffffff0,
};

static inline nghttp2_session *http2_session_of(const struct http2 *http2)
{
    return (nghttp2_session *)http2->session;
}

static inline struct worker *http2_worker_of(const struct http2 *http2)
{
    return http2->wire->worker;
}

static inline struct blocks *http2_blocks_of(const struct http2 *http2)
{
    return &http2_worker_of(http2)->streams->blocks;
}

static inline void http2_schedule(struct http2 *http2)
{
    wire_wants_to_write(http2->wire);
}

/* `result`: of something that libnghttp2 does not do only when out of memory, and without which a
 * peer would wait for ever. */
static inline void http2_require(struct http2 *http2, int result)
{
    if (result != 0 && nghttp2_is_fatal(result))
        wire_fail(http2->wire, ENOMEM);
}

/* ---- http2.c: its life ---- */

/* Who is on the stack may still use it. */
void http2_destroy_unless_used(struct http2 *http2);
/* libnghttp2 is on the stack no longer. False: it was closed meanwhile. */
bool http2_leave_session(struct http2 *http2);

/* ---- http2_stream.c: that of its streams ---- */

/* NULL when out of memory. */
struct http2_stream *http2_open_stream(struct http2 *http2, int32_t id);
/* Nobody uses it. */
void http2_free_stream(struct http2_stream *stream);
/* Whoever goes on with a stream that may end meanwhile adds to its locks before. */
void http2_unlock(struct http2_stream *stream);

/* NULL: it is known no longer, or the connection is closed. */
static inline struct http2_stream *http2_find_stream(const struct http2 *http2, int32_t id)
{
    return http2->closed ? NULL : nghttp2_session_get_stream_user_data(http2_session_of(http2), id);
}

/* Adds to a buffer of the stream, which counts for its client. False where there is no memory, or
 * the client has too much of it. */
bool http2_keep(struct http2_stream *stream, struct buffer *buffer, const void *data, size_t size);
/* Its buffers may have become smaller. */
void http2_charge(struct http2_stream *stream);
/* What waits to be sent is dropped. */
void http2_release_out(struct http2_stream *stream);
/* The peer may send so much more. */
void http2_give_credit(struct http2_stream *stream, size_t size);
/* Whether the other side of it takes more. */
bool http2_is_taken(const struct http2_stream *stream);
void http2_pass_data(struct http2_stream *stream, const uint8_t *data, size_t size);
void http2_reset(struct http2_stream *stream, uint32_t code);
/* A client's request that was answered before it has come whole, and of which nobody wants the rest
 * (RFC 9113, 8.1), ends. */
void http2_stop_request(struct http2_stream *stream);

/* ---- http2_bounds.c ---- */

void http2_bound(nghttp2_option *option);
void http2_set_bounds(nghttp2_session_callbacks *callbacks);
/* A frame has come. False: there are too many that bring nothing. */
bool http2_is_within_bounds(struct http2 *http2, const nghttp2_frame_hd *head);
bool http2_is_flooded(const struct http2 *http2);
/* A stream was reset. */
void http2_note_provoked(struct http2_stream *stream);
/* So much of what waited was sent. */
void http2_note_taken(struct http2_stream *stream, size_t size);
/* A frame of DATA goes. */
void http2_earn_updates(struct http2 *http2);
/* A client's request begins. NULL: it has too many, and the stream is reset. */
struct share *http2_admit(struct http2 *http2, int32_t id);

/* ---- http2_incoming.c, http2_outgoing.c ---- */

void http2_set_incoming(nghttp2_session_callbacks *callbacks);
void http2_set_outgoing(nghttp2_session_callbacks *callbacks);

#endif
#endif
