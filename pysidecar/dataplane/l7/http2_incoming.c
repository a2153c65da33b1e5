/* What comes on a connection that speaks HTTP/2. */
#include "base/owner.h"
#include "l7/downstream.h"
#include "l7/http2_head.h"
#include "l7/http2_parts.h"
#include "l7/sides.h"
#include "l7/uplink.h"

#if HAS_LIBNGHTTP2

enum { HUGE_HEAD = 4 }; /* so many times the limit: not even read to its end */

/* ---- heads ---- */

static int begin_request(struct http2 *http2, int32_t id)
{
    struct share *share;
    struct http2_stream *stream;

    if (http2_is_flooded(http2))
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    share = http2_admit(http2, id);
    http2->head_is_refused = !share;
    if (!share)
        return 0;
    stream = http2_open_stream(http2, id);
    if (!stream) {
        share_give_stream(&http2_worker_of(http2)->streams->shares, share);
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    }
    stream->share = share;
    nghttp2_session_set_stream_user_data(http2_session_of(http2), id, stream);
    return 0;
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct http2 *http2 = user;
    int result = 0;

    (void)session;
    if (http2->closed)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    if (frame->hd.type != NGHTTP2_HEADERS)
        return 0;
    buffer_release(http2_blocks_of(http2), &http2->head);
    http2->head_bytes = http2->head_fields = 0;
    http2->head_is_too_large = http2->head_is_refused = false;
    if (frame->headers.cat == NGHTTP2_HCAT_REQUEST)
        result = begin_request(http2, frame->hd.stream_id);
    if (result != 0 || http2->head_is_refused)
        return result;
    return http2_block_begin(http2_blocks_of(http2), &http2->head)
               ? 0
               : NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
}

/* RFC 9113 calls a field malformed whose value begins or ends with white space, but clients send
 * them, servers take them, and nothing is said by it. Pseudo fields are libnghttp2's to check. */
static struct text without_white_space(const uint8_t *value, size_t size)
{
    const char *from = (const char *)value, *end = from + size;

    while (from < end && (*from == ' ' || *from == '\t'))
        from++;
    while (from < end && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    return (struct text){from, (uint32_t)(end - from)};
}

/* A field more than its limits allow is not kept; the rest is read for the sake of the next ones.
 */
static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t name_size, const uint8_t *value, size_t value_size, uint8_t flags,
                     void *user)
{
    struct http2 *http2 = user;
    const struct limits *limits = http2_worker_of(http2)->streams->limits;
    struct text key = {(const char *)name, (uint32_t)name_size};

    (void)session, (void)frame, (void)flags;
    if (http2->closed)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    http2->head_bytes += (uint32_t)(name_size + value_size);
    if (http2->head_bytes > limits->head_bytes || ++http2->head_fields > MOST_PAIRS)
        http2->head_is_too_large = true;
    if (http2->head_bytes > HUGE_HEAD * limits->head_bytes)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    if (http2->head_is_too_large || http2->head_is_refused)
        return 0;
    return http2_block_add(http2_blocks_of(http2), &http2->head, key,
                           without_white_space(value, value_size))
               ? 0
               : NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
}

/* Decodes the head that was read, and gives its memory to the caller. False: it is wrong. */
static bool decode_head(struct http2 *http2, struct http2_stream *stream, bool ends,
                        struct buffer *head, struct message *message)
{
    struct decoder decoder = {.limits = http2_worker_of(http2)->streams->limits,
                              .response = http2->uplink != NULL};
    size_t consumed;
    enum codec_event event;

    if (stream->stream)
        decoder.facts = stream->stream->facts;
    http2_block_end(&http2->head, ends ? HTTP2_BLOCK_ENDS : 0);
    *head = http2->head;
    http2->head = (struct buffer){.data = NULL};
    event = codec_http2.decode(&decoder, head->data + head->start, buffer_held(head), &consumed,
                               message);
    message->id = (uint64_t)stream->id;
    message->carrier = stream;
    message->frame =
        (struct text){(const char *)head->data + head->start, (uint32_t)buffer_held(head)};
    if (http2->head_is_too_large) {
        message->http_status = 431;
        message->problem = "too large a head";
    }
    return event == CODEC_HEAD && !http2->head_is_too_large;
}

static void take_request(struct http2 *http2, struct http2_stream *stream, bool ends)
{
    struct downstream *downstream = http2->downstream;
    struct message message;
    struct buffer head;

    static const nghttp2_extpri in_turn = {.urgency = NGHTTP2_EXTPRI_DEFAULT_URGENCY, .inc = 1};

    stream->in_ended = ends;
    downstream->requests++;
    if (stream->id >=
        NEARLY_LAST_STREAM) /* there are hardly any left: it needs another connection */
        http2_notice(http2);
    /* All alike, whatever the client says of them. */
    nghttp2_session_change_extpri_stream_priority(http2_session_of(http2), stream->id, &in_turn, 1);
    if (decode_head(http2, stream, ends, &head, &message))
        stream_begin(downstream, &message, message.frame.size);
    else
        stream_refuse(downstream, &message, &message);
    buffer_release(http2_blocks_of(http2), &head);
}

static void take_response(struct http2 *http2, struct http2_stream *stream, bool ends)
{
    struct message message;
    struct buffer head;

    if (!stream->stream) { /* nobody waits for it any more */
        buffer_release(http2_blocks_of(http2), &http2->head);
        return;
    }
    stream->locks++;
    if (decode_head(http2, stream, ends, &head, &message)) {
        stream_response(stream->stream, CODEC_HEAD, &message, message.frame.size);
        stream->in_ended = ends;
        http2_pass_on(stream);
    } else {
        http2_reset(stream, NGHTTP2_PROTOCOL_ERROR);
        stream_uplink_lost(stream->stream, DP_FLAG_MALFORMED_RESPONSE);
    }
    http2_unlock(stream);
    buffer_release(http2_blocks_of(http2), &head);
}

static void take_trailers(struct http2 *http2, struct http2_stream *stream, bool ends)
{
    if (!ends || !stream->stream || http2->head_is_too_large) {
        buffer_release(http2_blocks_of(http2), &http2->head);
        if (http2->head_is_too_large)
            http2_reset(stream, NGHTTP2_ENHANCE_YOUR_CALM);
        return;
    }
    http2_block_end(&http2->head, HTTP2_BLOCK_ENDS);
    stream->in_trailers = http2->head;
    http2->head = (struct buffer){.data = NULL};
    http2_charge(stream);
    stream->in_ended = true;
    http2_pass_on(stream);
}

/* A head is complete. */
static void take_head(struct http2 *http2, struct http2_stream *stream, const nghttp2_frame *frame)
{
    bool ends = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;

    if (frame->headers.cat == NGHTTP2_HCAT_REQUEST)
        take_request(http2, stream, ends);
    else if (http2->uplink && stream->stream && !stream->stream->answering)
        take_response(http2, stream, ends); /* also behind interim ones */
    else
        take_trailers(http2, stream, ends);
}

/* ---- what else comes ---- */

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data,
                   size_t size, void *user)
{
    struct http2 *http2 = user;
    struct http2_stream *stream = http2_find_stream(http2, id);

    (void)flags;
    if (http2->closed)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    if (!stream || !stream->stream) {
        http2_require(http2, nghttp2_session_consume(session, id, size));
        return 0;
    }
    stream->active_ms = http2_worker_of(http2)->loop.now_ms;
    if (http2->uplink)
        http2_require(http2, nghttp2_session_consume_connection(session, size));
    if (buffer_held(&stream->in) == 0 && !stream->passing && http2_is_taken(stream)) {
        stream->locks++;
        stream->passing = true;
        http2_pass_data(stream, data, size);
        stream->passing = false;
        http2_unlock(stream);
        return 0;
    }
    if (!http2_keep(stream, &stream->in, data, size)) {
        http2_give_credit(stream, size);
        http2_reset(stream, NGHTTP2_INTERNAL_ERROR);
    }
    return 0;
}

/* Whether there were more requests than the server takes, before it had said so. */
static bool is_beyond_settings(const struct http2_stream *stream)
{
    uint32_t most = nghttp2_session_get_remote_settings(http2_session_of(stream->http2),
                                                        NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);

    return stream->is_early && ((uint32_t)stream->id + 1) / 2 > most;
}

static enum processed processed(const struct http2_stream *stream, uint32_t code)
{
    if (code != NGHTTP2_REFUSED_STREAM)
        return PROCESSED_PERHAPS;
    return stream->http2->goes_away || is_beyond_settings(stream) ? PROCESSED_AWAY
                                                                  : PROCESSED_REFUSED;
}

/* The peer, or libnghttp2, has ended it before our stream had all. */
static void lose(struct http2_stream *stream, uint32_t code)
{
    struct stream *ours = stream->stream;

    if (stream->http2->downstream) {
        if (ours->answered && stream->in_ended && code == NGHTTP2_NO_ERROR)
            return; /* what came of it is still to be passed on */
        ours->reset_code = code;
        stream_abandon(ours, DP_FLAG_DOWNSTREAM_CLOSED);
        downstream_answered(stream->http2->downstream);
    } else if (!stream->in_ended || code != NGHTTP2_NO_ERROR || ours->answered) {
        stream_uplink_reset(ours, code, processed(stream, code));
    }
}

static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t code, void *user)
{
    struct http2 *http2 = user;
    struct http2_stream *stream = http2_find_stream(http2, id);

    if (!stream)
        return 0;
    nghttp2_session_set_stream_user_data(session, id, NULL);
    stream->closed = true;
    if (stream->in_ended || stream->in_reset)
        http2_past_ended(&http2->past, (uint32_t)id, stream->in_reset);
    http2_release_out(stream);
    stream->locks++;
    if (stream->stream)
        lose(stream, code);
    http2_unlock(stream); /* it may stay until what came is passed on */
    if (http2->closed)
        return 0;
    if (http2->uplink)
        uplink_has_room(http2->uplink);
    else
        http2_schedule(http2); /* perhaps it was the last one */
    return 0;
}

static struct http2_stream *opened_before(const struct http2_stream *stream)
{
    return stream->previous == &stream->http2->streams
               ? NULL
               : OWNER(stream->previous, struct http2_stream, next);
}

/* Requests beyond the last one are sent again: in their order, lest one is always the last. What
 * libnghttp2 would do with them is not in any order. */
static void take_goaway(struct http2 *http2, int32_t last)
{
    struct http2_stream *oldest, *before;

    http2->goes_away = true;
    if (!http2->uplink)
        return;
    uplink_goes_away(http2->uplink);
    if (http2->closed)
        return;
    oldest = http2->streams;
    while (oldest && oldest->next)
        oldest = oldest->next;
    for (struct http2_stream *stream = oldest; stream && !http2->closed; stream = before) {
        before = opened_before(stream);
        if (stream->id > last && !stream->closed)
            on_stream_close(http2_session_of(http2), stream->id, NGHTTP2_REFUSED_STREAM, http2);
    }
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct http2 *http2 = user;
    struct http2_stream *stream =
        frame->hd.stream_id ? http2_find_stream(http2, frame->hd.stream_id) : NULL;

    (void)session;
    if (http2->closed)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    switch (frame->hd.type) {
    case NGHTTP2_HEADERS:
        if (stream)
            take_head(http2, stream, frame);
        break;
    case NGHTTP2_DATA:
        if (stream && frame->hd.flags & NGHTTP2_FLAG_END_STREAM) {
            stream->in_ended = true;
            http2_pass_on(stream);
        }
        break;
    case NGHTTP2_RST_STREAM:
        if (stream)
            stream->in_reset = true;
        break;
    case NGHTTP2_GOAWAY:
        take_goaway(http2, frame->goaway.last_stream_id);
        break;
    case NGHTTP2_SETTINGS:
        if (!(frame->hd.flags & NGHTTP2_FLAG_ACK))
            http2->settled = true;
        if (http2->uplink)
            uplink_has_room(http2->uplink);
        break;
    default:
        break;
    }
    return http2_is_within_bounds(http2, &frame->hd) ? 0 : NGHTTP2_ERR_CALLBACK_FAILURE;
}

void http2_set_incoming(nghttp2_session_callbacks *callbacks)
{
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
}

#endif
