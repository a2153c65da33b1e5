/* What goes on a connection that speaks HTTP/2. */
#include <errno.h>
#include <string.h>

#include "l7/http2_head.h"
#include "l7/http2_parts.h"
#include "l7/sides.h"
#include "l7/stream.h"
#include "l7/uplink.h"

#if HAS_LIBNGHTTP2

#define LENT_AND_LOST SIZE_MAX

enum {
    OUT_BEHIND_BYTES = 64 * 1024,     /* of a stream, that wait to be sent */
    MOST_OUT_BYTES = 4 * 1024 * 1024, /* of all of a client's streams, likewise */
    MOST_INTERIM = 16,                /* heads of a stream that wait to be sent: more are dropped */
    FILL_BYTES = 64 * 1024, /* that wait on the wire, before no further frame is written */
    LENT_BYTES = 8 * 1024,  /* from which on a piece is not copied where it need not be */
};

/* Whether a field has another value in each request: in HPACK's table it would only push out those
 * that come again. */
static bool is_new_each_time(struct text name)
{
    static const struct text names[] = {
        TEXT("b3"),           TEXT("grpc-timeout"), TEXT("traceparent"),       TEXT("tracestate"),
        TEXT("x-b3-traceid"), TEXT("x-b3-spanid"),  TEXT("x-b3-parentspanid"), TEXT("x-request-id"),
    };

    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (text_equal(name, names[i]))
            return true;
    return false;
}

/* Pairs of a block, in its memory. */
static size_t make_pairs(const uint8_t *data, nghttp2_nv *pairs, struct http2_block *block)
{
    struct http2_reader reader = http2_read_block(data, block);
    struct field field;
    size_t count = 0;

    while (count < MOST_PAIRS && http2_next_field(&reader, &field))
        pairs[count++] = (nghttp2_nv){
            .name = (uint8_t *)field.name.at,
            .value = (uint8_t *)field.value.at,
            .namelen = field.name.size,
            .valuelen = field.value.size,
            .flags = is_new_each_time(field.name) ? NGHTTP2_NV_FLAG_NO_INDEX : NGHTTP2_NV_FLAG_NONE,
        };
    return count;
}

static size_t unsent(const struct http2_stream *stream)
{
    return stream->lent ? stream->lent_size : buffer_held(&stream->out);
}

static bool submit_trailers(struct http2_stream *stream)
{
    nghttp2_nv pairs[MOST_PAIRS];
    struct http2_block block;
    struct buffer *trailers = &stream->out_trailers;
    size_t count = make_pairs(trailers->data + trailers->start, pairs, &block);
    int result = nghttp2_submit_trailer(http2_session_of(stream->http2), stream->id, pairs, count);

    buffer_release(http2_blocks_of(stream->http2), trailers);
    http2_charge(stream);
    return result == 0;
}

/* For libnghttp2: how many bytes the next frame may have. */
static ssize_t read_out(nghttp2_session *session, int32_t id, uint8_t *to, size_t room,
                        uint32_t *flags, nghttp2_data_source *source, void *user)
{
    struct http2_stream *stream = source->ptr;
    size_t size;

    (void)session, (void)id, (void)to;
    if (((struct http2 *)user)->closed)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    size = unsent(stream);
    if (size == 0 && !stream->out_ended) {
        stream->deferred = true;
        return NGHTTP2_ERR_DEFERRED;
    }
    *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
    if (size > room)
        return (ssize_t)room;
    if (stream->out_ended) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
        if (buffer_held(&stream->out_trailers) > 0) {
            *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
            if (!submit_trailers(stream))
                return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE; /* resets the stream */
        }
    }
    return (ssize_t)size;
}

static void tell_sent(struct http2_stream *stream)
{
    stream->behind = false;
    if (!stream->stream)
        return;
    if (stream->http2->downstream)
        stream_downstream_sent(stream->stream);
    else
        stream_uplink_sent(stream->stream);
}

/* Writes a frame of DATA, without a copy in between. */
static int send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *head,
                     size_t size, nghttp2_data_source *source, void *user)
{
    struct http2 *http2 = user;
    struct http2_stream *stream = source->ptr;
    const uint8_t *from;
    uint8_t *to;

    (void)session, (void)frame;
    if (http2->closed)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    if (size > unsent(stream)) /* it was dropped: see http2_drop_not_taken() */
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    from = stream->lent ? stream->lent : stream->out.data + stream->out.start;
    if (buffer_held(&http2->wire->out) > FILL_BYTES)
        return NGHTTP2_ERR_WOULDBLOCK;
    to = wire_room(http2->wire, FRAME_HEAD + size);
    if (!to)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    memcpy(to, head, FRAME_HEAD);
    if (size > 0)
        memcpy(to + FRAME_HEAD, from, size);
    wire_wrote(http2->wire, FRAME_HEAD + size);
    stream->active_ms = http2_worker_of(http2)->loop.now_ms;
    http2_earn_updates(http2);
    if (stream->lent) {
        stream->lent += size;
        stream->lent_size -= size;
    } else {
        buffer_drop(http2_blocks_of(http2), &stream->out, size);
        http2->out_bytes -= size;
        http2_charge(stream);
        http2_note_taken(stream, size);
    }
    if (stream->behind && unsent(stream) <= OUT_BEHIND_BYTES / 2)
        tell_sent(stream);
    return 0;
}

void http2_fill(struct http2 *http2)
{
    const uint8_t *data;
    ssize_t size = 0;

    if (http2->inside || !http2->session || !http2->greets)
        return;
    http2->inside = true;
    while (!http2->closed && buffer_held(&http2->wire->out) <= FILL_BYTES) {
        uint8_t *to;

        size = nghttp2_session_mem_send(http2_session_of(http2), &data);
        if (size <= 0 || http2->closed)
            break;
        to = wire_room(http2->wire, (size_t)size);
        if (!to) {
            size = NGHTTP2_ERR_NOMEM;
            break;
        }
        memcpy(to, data, (size_t)size);
        wire_wrote(http2->wire, (size_t)size);
    }
    if (http2_leave_session(http2) && size < 0)
        wire_fail(http2->wire, ENOMEM);
}

static void resume(struct http2_stream *stream)
{
    if (stream->deferred) {
        stream->deferred = false;
        http2_require(stream->http2,
                      nghttp2_session_resume_data(http2_session_of(stream->http2), stream->id));
    }
    http2_schedule(stream->http2);
}

/* Writes the piece from where it is, as far as that is possible now. Returns what is left, or
 * LENT_AND_LOST: the stream is no more. */
static size_t lend(struct http2_stream *stream, const uint8_t *data, size_t size)
{
    bool lost;

    stream->lent = data;
    stream->lent_size = size;
    stream->locks++;
    resume(stream);
    http2_fill(stream->http2);
    size = stream->lent_size;
    stream->lent = NULL;
    stream->lent_size = 0;
    lost = stream->closed;
    http2_unlock(stream);
    return lost ? LENT_AND_LOST : size;
}

bool http2_write(struct http2_stream *stream, const void *data, size_t size)
{
    struct http2 *http2 = stream->http2;
    const uint8_t *from = data;
    size_t left = size;

    if (stream->closed || size == 0)
        return true;
    if (size >= LENT_BYTES && !http2->inside && buffer_held(&stream->out) == 0) {
        left = lend(stream, from, size);
        if (left == LENT_AND_LOST)
            return true;
    }
    if (left == 0)
        return true;
    if (!http2_keep(stream, &stream->out, from + size - left, left))
        return false;
    http2->out_bytes += left;
    if (!stream->unsent_since_ms)
        stream->unsent_since_ms = http2_worker_of(http2)->loop.now_ms;
    stream->behind = http2_is_behind(stream);
    resume(stream);
    return true;
}

bool http2_write_end(struct http2_stream *stream, const uint8_t *trailers)
{
    struct http2_block block;

    if (stream->closed || stream->out_ended)
        return true;
    if (trailers) {
        http2_read_block(trailers, &block);
        if (block.count > 0 && !http2_keep(stream, &stream->out_trailers, trailers, block.bytes))
            return false;
    }
    stream->out_ended = true;
    resume(stream);
    return true;
}

bool http2_is_behind(const struct http2_stream *stream)
{
    const struct http2 *http2 = stream->http2;
    size_t size = unsent(stream);

    return size > OUT_BEHIND_BYTES ||
           (size > 0 && http2->downstream && http2->out_bytes > MOST_OUT_BYTES);
}

struct http2_stream *http2_request(struct http2 *http2, struct stream *ours, const uint8_t *data)
{
    struct http2_stream *stream = http2_open_stream(http2, 0);
    nghttp2_data_provider provider = {.source.ptr = stream, .read_callback = read_out};
    nghttp2_nv pairs[MOST_PAIRS];
    struct http2_block block;
    size_t count;

    if (!stream)
        return NULL;
    count = make_pairs(data, pairs, &block);
    stream->out_ended = block.flags & HTTP2_BLOCK_ENDS;
    stream->id = nghttp2_submit_request(http2_session_of(http2), NULL, pairs, count,
                                        stream->out_ended ? NULL : &provider, stream);
    if (stream->id < 0) {
        http2_free_stream(stream);
        return NULL;
    }
    stream->stream = ours;
    stream->is_early = !http2->settled;
    stream->active_ms = http2_worker_of(http2)->loop.now_ms;
    if (nghttp2_session_get_next_stream_id(http2_session_of(http2)) >= NEARLY_LAST_STREAM)
        http2->uplink->leaving = true;
    http2_schedule(http2);
    return stream;
}

bool http2_respond(struct http2_stream *stream, const uint8_t *data, bool interim)
{
    struct http2 *http2 = stream->http2;
    nghttp2_data_provider provider = {.source.ptr = stream, .read_callback = read_out};
    nghttp2_nv pairs[MOST_PAIRS];
    struct http2_block block;
    size_t count = make_pairs(data, pairs, &block);
    int result;

    if (stream->closed || (interim && stream->interim == MOST_INTERIM))
        return true;
    if (interim) {
        stream->interim++;
        result = nghttp2_submit_headers(http2_session_of(http2), NGHTTP2_FLAG_NONE, stream->id,
                                        NULL, pairs, count, NULL);
    } else {
        stream->out_ended = block.flags & HTTP2_BLOCK_ENDS;
        result = nghttp2_submit_response(http2_session_of(http2), stream->id, pairs, count,
                                         stream->out_ended ? NULL : &provider);
    }
    http2_schedule(http2);
    return result == 0;
}

static int on_frame_sent(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct http2_stream *stream = http2_find_stream(user, frame->hd.stream_id);
    uint8_t type = frame->hd.type;

    (void)session;
    if (!stream)
        return 0;
    if (type == NGHTTP2_RST_STREAM)
        http2_note_provoked(stream);
    else if (type == NGHTTP2_HEADERS && stream->interim > 0)
        stream->interim--;
    if (!(frame->hd.flags & NGHTTP2_FLAG_END_STREAM) ||
        (type != NGHTTP2_DATA && type != NGHTTP2_HEADERS))
        return 0;
    stream->end_sent = true;
    http2_stop_request(stream);
    return 0;
}

void http2_set_outgoing(nghttp2_session_callbacks *callbacks)
{
    nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_frame_sent);
    nghttp2_session_callbacks_set_send_data_callback(callbacks, send_data);
}

#endif
