/* The streams of a connection that speaks HTTP/2: their life, and passing on what came on them. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "l7/downstream.h"
#include "l7/http2_head.h"
#include "l7/http2_parts.h"
#include "l7/sides.h"

#if HAS_LIBNGHTTP2

enum { MOST_SPARE = 256 };

/* ---- life ---- */

struct http2_stream *http2_open_stream(struct http2 *http2, int32_t id)
{
    struct streams *streams = http2_worker_of(http2)->streams;
    struct http2_stream *stream = streams->spare_http2;

    if (stream) {
        streams->spare_http2 = stream->next;
        streams->spare_http2_count--;
        memset(stream, 0, sizeof *stream);
    } else {
        stream = calloc(1, sizeof *stream);
    }
    if (!stream)
        return NULL;
    stream->http2 = http2;
    stream->id = id;
    stream->reset_code = NGHTTP2_CANCEL;
    stream->next = http2->streams;
    stream->previous = &http2->streams;
    if (stream->next)
        stream->next->previous = &stream->next;
    http2->streams = stream;
    http2->stream_count++;
    return stream;
}

static struct share *share_of_client(struct http2_stream *stream)
{
    if (!stream->share)
        stream->share = downstream_share(stream->stream->downstream);
    return stream->share;
}

void http2_charge(struct http2_stream *stream)
{
    uint32_t held = stream->in.capacity + stream->in_trailers.capacity + stream->out.capacity +
                    stream->out_trailers.capacity;

    if (held == stream->charged)
        return;
    share_of_client(stream)->bytes += (uint64_t)held - stream->charged;
    stream->charged = held;
}

bool http2_keep(struct http2_stream *stream, struct buffer *buffer, const void *data, size_t size)
{
    struct blocks *blocks = http2_blocks_of(stream->http2);

    if (!share_may_hold(share_of_client(stream), blocks, size) ||
        !buffer_add_tightly(blocks, buffer, data, size))
        return false;
    http2_charge(stream);
    return true;
}

void http2_release_out(struct http2_stream *stream)
{
    struct blocks *blocks = http2_blocks_of(stream->http2);

    stream->http2->out_bytes -= buffer_held(&stream->out);
    stream->unsent_since_ms = 0;
    buffer_release(blocks, &stream->out);
    buffer_release(blocks, &stream->out_trailers);
    http2_charge(stream);
}

static void release_in(struct http2_stream *stream)
{
    struct blocks *blocks = http2_blocks_of(stream->http2);

    buffer_release(blocks, &stream->in);
    buffer_release(blocks, &stream->in_trailers);
    http2_charge(stream);
}

void http2_free_stream(struct http2_stream *stream)
{
    struct http2 *http2 = stream->http2;
    struct streams *streams = http2_worker_of(http2)->streams;

    assert(!stream->stream);
    release_in(stream);
    http2_release_out(stream);
    assert(stream->charged == 0);
    if (http2->downstream)
        share_give_stream(&streams->shares, stream->share);
    *stream->previous = stream->next;
    if (stream->next)
        stream->next->previous = stream->previous;
    http2->stream_count--;
    if (streams->spare_http2_count >= MOST_SPARE) {
        free(stream);
        return;
    }
    stream->next = streams->spare_http2;
    streams->spare_http2 = stream;
    streams->spare_http2_count++;
}

void http2_free_spares(struct streams *streams)
{
    while (streams->spare_http2) {
        struct http2_stream *stream = streams->spare_http2;

        streams->spare_http2 = stream->next;
        free(stream);
    }
    http2_memory_close(&streams->http2_memory);
}

void http2_unlock(struct http2_stream *stream)
{
    struct http2 *http2 = stream->http2;

    if (--stream->locks > 0 || !stream->closed || stream->stream)
        return;
    http2_free_stream(stream);
    if (http2->closed)
        http2_destroy_unless_used(http2);
}

void http2_give_credit(struct http2_stream *stream, size_t size)
{
    struct http2 *http2 = stream->http2;

    if (size == 0)
        return;
    if (http2->downstream)
        http2_require(http2, nghttp2_session_consume(http2_session_of(http2), stream->id, size));
    else
        http2_require(http2,
                      nghttp2_session_consume_stream(http2_session_of(http2), stream->id, size));
    http2_schedule(http2);
}

/* A stream whose client takes what comes gets more of it at a time. */
static void widen(struct http2_stream *stream, size_t size)
{
    if (stream->http2->downstream || stream->is_wide)
        return;
    stream->passed += size;
    if (stream->passed <= FIRST_UPSTREAM_WINDOW)
        return;
    stream->is_wide = true;
    if (!stream->closed)
        http2_require(stream->http2, nghttp2_session_set_local_window_size(
                                         http2_session_of(stream->http2), NGHTTP2_FLAG_NONE,
                                         stream->id, STREAM_WINDOW));
}

/* ---- passing on what came ---- */

bool http2_is_taken(const struct http2_stream *stream)
{
    const struct stream *ours = stream->stream;

    if (stream->http2->downstream)
        return ours->uplink && !ours->up->is_behind(ours);
    return !ours->down->is_behind(ours);
}

static bool has_passed_end(const struct http2_stream *stream)
{
    return stream->http2->downstream ? stream->stream->complete : stream->stream->answered;
}

void http2_pass_data(struct http2_stream *stream, const uint8_t *data, size_t size)
{
    struct message message = {.data = {(const char *)data, (uint32_t)size}};

    if (stream->http2->downstream)
        stream_request_data(stream->stream, &message, size);
    else
        stream_response(stream->stream, CODEC_DATA, &message, size);
    http2_give_credit(stream, size);
    widen(stream, size);
}

static void pass_end(struct http2_stream *stream)
{
    struct message message = {0};
    struct buffer trailers = stream->in_trailers;
    size_t size = buffer_held(&trailers);

    stream->in_trailers = (struct buffer){.data = NULL};
    if (size > 0)
        http2_read_trailers(trailers.data + trailers.start, &message);
    if (stream->http2->downstream)
        stream_request_end(stream->stream, &message, size);
    else
        stream_response(stream->stream, CODEC_END, &message, size);
    buffer_release(http2_blocks_of(stream->http2), &trailers);
    http2_charge(stream);
}

/* Our stream may end in any of these. */
void http2_pass_on(struct http2_stream *stream)
{
    if (stream->passing || !stream->stream)
        return;
    stream->passing = true;
    stream->locks++;
    while (stream->stream && buffer_held(&stream->in) > 0 && http2_is_taken(stream)) {
        struct buffer piece = stream->in;

        stream->in = (struct buffer){.data = NULL};
        http2_pass_data(stream, piece.data + piece.start, buffer_held(&piece));
        buffer_release(http2_blocks_of(stream->http2), &piece);
        http2_charge(stream);
    }
    if (stream->stream && stream->in_ended && buffer_held(&stream->in) == 0 &&
        http2_is_taken(stream) && !has_passed_end(stream))
        pass_end(stream);
    stream->passing = false;
    http2_unlock(stream);
}

/* ---- end ---- */

void http2_reset(struct http2_stream *stream, uint32_t code)
{
    struct http2 *http2 = stream->http2;

    stream->is_reset = true;
    if (!stream->closed)
        http2_require(http2, nghttp2_submit_rst_stream(http2_session_of(http2), NGHTTP2_FLAG_NONE,
                                                       stream->id, code));
    http2_schedule(http2);
}

void http2_stop_request(struct http2_stream *stream)
{
    if (stream->http2->downstream && stream->end_sent && !stream->in_ended && !stream->stream)
        http2_reset(stream, NGHTTP2_NO_ERROR);
}

void http2_leave(struct http2_stream *stream, bool complete)
{
    size_t dropped = buffer_held(&stream->in);

    stream->locks++;
    stream->stream = NULL;
    release_in(stream);
    http2_give_credit(stream, dropped);
    if (complete)
        http2_stop_request(stream);
    else if (!stream->closed)
        http2_reset(stream, stream->reset_code);
    http2_unlock(stream);
}

#endif
