#include "l7/http2.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/owner.h"
#include "l7/bytes.h"
#include "l7/downstream.h"
#include "l7/http2_head.h"
#include "l7/http2_library.h"
#include "l7/sides.h"
#include "l7/streams.h"
#include "l7/uplink.h"

#if HAS_LIBNGHTTP2
#include <nghttp2/nghttp2.h>

#define LENT_AND_LOST SIZE_MAX

/* Later versions, and earlier ones with Debian's fixes, have it. */
void nghttp2_option_set_stream_reset_rate_limit(nghttp2_option *, uint64_t, uint64_t)
    __attribute__((weak));

enum {
    STREAM_WINDOW = 256 * 1024,
    /* Of a client: what waits on all of its streams. An upstream has that of each stream alone,
     * since clients share it: one that takes nothing is not to stop the others. */
    CLIENT_WINDOW = 1024 * 1024,
    UPSTREAM_WINDOW = 16 * 1024 * 1024,
    FIRST_UPSTREAM_WINDOW = 64 * 1024, /* of a stream, until its client has taken more than that */
    MOST_STREAMS = 256,                /* of a client at a time */
    MOST_UPSTREAM_STREAMS = 4096,
    OUT_BEHIND_BYTES = 64 * 1024,     /* of a stream, that wait to be sent */
    MOST_OUT_BYTES = 4 * 1024 * 1024, /* of all of a client's streams, likewise */
    MOST_INTERIM = 16,                /* heads of a stream that wait to be sent: more are dropped */
    HUGE_HEAD = 4,                    /* so many times the limit: not even read to its end */
    FILL_BYTES = 64 * 1024, /* that wait on the wire, before no further frame is written */
    LENT_BYTES = 8 * 1024,  /* from which on a piece is not copied where it need not be */
    MOST_PAIRS = MAX_FIELDS + 8,
    MOST_SPARE = 256,
    FRAME_HEAD = 9,
    GOAWAY_BYTES = FRAME_HEAD + 8,
    NEARLY_LAST_STREAM = 0x7ffffff0,
    MOST_SENT_HEAD = 1024 * 1024,
    /* See brings_nothing(). */
    MOST_IDLE_FRAMES = 2000,
    REFILL_A_SECOND = 500,
};

static nghttp2_session *session_of(const struct http2 *http2)
{
    return (nghttp2_session *)http2->session;
}

static struct worker *worker_of(const struct http2 *http2)
{
    return http2->wire->worker;
}

static struct blocks *blocks_of(const struct http2 *http2)
{
    return &worker_of(http2)->streams->blocks;
}

static void schedule(struct http2 *http2)
{
    wire_wants_to_write(http2->wire);
}

/* `result`: of something that libnghttp2 does not do only when out of memory, and without which a
 * peer would wait for ever. */
static void require(struct http2 *http2, int result)
{
    if (result != 0 && nghttp2_is_fatal(result))
        wire_fail(http2->wire, ENOMEM);
}

/* ---- streams ---- */

static struct http2_stream *open_stream(struct http2 *http2, int32_t id)
{
    struct streams *streams = worker_of(http2)->streams;
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

static void release_out(struct http2_stream *stream)
{
    struct blocks *blocks = blocks_of(stream->http2);

    stream->http2->out_bytes -= buffer_held(&stream->out);
    buffer_release(blocks, &stream->out);
    buffer_release(blocks, &stream->out_trailers);
}

static void release_in(struct http2_stream *stream)
{
    struct blocks *blocks = blocks_of(stream->http2);

    buffer_release(blocks, &stream->in);
    buffer_release(blocks, &stream->in_trailers);
}

static void free_stream(struct http2_stream *stream)
{
    struct http2 *http2 = stream->http2;
    struct streams *streams = worker_of(http2)->streams;

    assert(!stream->stream);
    release_in(stream);
    release_out(stream);
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

/* Who is on the stack may still use it. */
static void destroy_unless_used(struct http2 *http2)
{
    if (http2->inside || http2->streams)
        return;
    nghttp2_session_del(session_of(http2));
    free(http2);
}

/* Whoever goes on with a stream that may end meanwhile adds to its locks before. */
static void unlock(struct http2_stream *stream)
{
    struct http2 *http2 = stream->http2;

    if (--stream->locks > 0 || !stream->closed || stream->stream)
        return;
    free_stream(stream);
    if (http2->closed)
        destroy_unless_used(http2);
}

/* NULL: it is known no longer, or the connection is closed. */
static struct http2_stream *find_stream(const struct http2 *http2, int32_t id)
{
    return http2->closed ? NULL : nghttp2_session_get_stream_user_data(session_of(http2), id);
}

static void give_credit(struct http2_stream *stream, size_t size)
{
    struct http2 *http2 = stream->http2;

    if (size == 0)
        return;
    if (http2->downstream)
        require(http2, nghttp2_session_consume(session_of(http2), stream->id, size));
    else
        require(http2, nghttp2_session_consume_stream(session_of(http2), stream->id, size));
    schedule(http2);
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
        require(stream->http2,
                nghttp2_session_set_local_window_size(session_of(stream->http2), NGHTTP2_FLAG_NONE,
                                                      stream->id, STREAM_WINDOW));
}

/* ---- passing on what came ---- */

/* Whether the other side of it takes more. */
static bool is_taken(const struct http2_stream *stream)
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

static void pass_data(struct http2_stream *stream, const uint8_t *data, size_t size)
{
    struct message message = {.data = {(const char *)data, (uint32_t)size}};

    if (stream->http2->downstream)
        stream_request_data(stream->stream, &message, size);
    else
        stream_response(stream->stream, CODEC_DATA, &message, size);
    give_credit(stream, size);
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
    buffer_release(blocks_of(stream->http2), &trailers);
}

/* Our stream may end in any of these. */
void http2_pass_on(struct http2_stream *stream)
{
    if (stream->passing || !stream->stream)
        return;
    stream->passing = true;
    stream->locks++;
    while (stream->stream && buffer_held(&stream->in) > 0 && is_taken(stream)) {
        struct buffer piece = stream->in;

        stream->in = (struct buffer){.data = NULL};
        pass_data(stream, piece.data + piece.start, buffer_held(&piece));
        buffer_release(blocks_of(stream->http2), &piece);
    }
    if (stream->stream && stream->in_ended && buffer_held(&stream->in) == 0 && is_taken(stream) &&
        !has_passed_end(stream))
        pass_end(stream);
    stream->passing = false;
    unlock(stream);
}

/* ---- heads ---- */

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct http2 *http2 = user;
    struct http2_stream *stream;

    if (http2->closed)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    if (frame->hd.type != NGHTTP2_HEADERS)
        return 0;
    buffer_release(blocks_of(http2), &http2->head);
    http2->head_bytes = http2->head_fields = 0;
    http2->head_is_too_large = false;
    if (frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
        if (http2->idle_frames > MOST_IDLE_FRAMES)
            return NGHTTP2_ERR_CALLBACK_FAILURE;
        stream = open_stream(http2, frame->hd.stream_id);
        if (!stream)
            return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
        nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, stream);
    }
    return http2_block_begin(blocks_of(http2), &http2->head)
               ? 0
               : NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
}

/* A field more than its limits allow is not kept; the rest is read for the sake of the next ones.
 */
static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t name_size, const uint8_t *value, size_t value_size, uint8_t flags,
                     void *user)
{
    struct http2 *http2 = user;
    const struct limits *limits = worker_of(http2)->streams->limits;
    struct text key = {(const char *)name, (uint32_t)name_size};

    (void)session, (void)frame, (void)flags;
    if (http2->closed)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    http2->head_bytes += (uint32_t)(name_size + value_size);
    if (http2->head_bytes > limits->head_bytes || ++http2->head_fields > MOST_PAIRS)
        http2->head_is_too_large = true;
    if (http2->head_bytes > HUGE_HEAD * limits->head_bytes)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    if (http2->head_is_too_large)
        return 0;
    return http2_block_add(blocks_of(http2), &http2->head, key,
                           (struct text){(const char *)value, (uint32_t)value_size})
               ? 0
               : NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
}

/* Decodes the head that was read, and gives its memory to the caller. False: it is wrong. */
static bool decode_head(struct http2 *http2, struct http2_stream *stream, bool ends,
                        struct buffer *head, struct message *message)
{
    struct decoder decoder = {.limits = worker_of(http2)->streams->limits,
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
    nghttp2_session_change_extpri_stream_priority(session_of(http2), stream->id, &in_turn, 1);
    if (decode_head(http2, stream, ends, &head, &message))
        stream_begin(downstream, &message, message.frame.size);
    else
        stream_refuse(downstream, &message, &message);
    buffer_release(blocks_of(http2), &head);
}

static void reset(struct http2_stream *stream, uint32_t code)
{
    struct http2 *http2 = stream->http2;

    stream->is_reset = true;
    if (!stream->closed)
        require(http2,
                nghttp2_submit_rst_stream(session_of(http2), NGHTTP2_FLAG_NONE, stream->id, code));
    schedule(http2);
}

static void take_response(struct http2 *http2, struct http2_stream *stream, bool ends)
{
    struct message message;
    struct buffer head;

    if (!stream->stream) { /* nobody waits for it any more */
        buffer_release(blocks_of(http2), &http2->head);
        return;
    }
    stream->locks++;
    if (decode_head(http2, stream, ends, &head, &message)) {
        stream_response(stream->stream, CODEC_HEAD, &message, message.frame.size);
        stream->in_ended = ends;
        http2_pass_on(stream);
    } else {
        reset(stream, NGHTTP2_PROTOCOL_ERROR);
        stream_uplink_lost(stream->stream, DP_FLAG_MALFORMED_RESPONSE);
    }
    unlock(stream);
    buffer_release(blocks_of(http2), &head);
}

static void take_trailers(struct http2 *http2, struct http2_stream *stream, bool ends)
{
    if (!ends || !stream->stream || http2->head_is_too_large) {
        buffer_release(blocks_of(http2), &http2->head);
        if (http2->head_is_too_large)
            reset(stream, NGHTTP2_ENHANCE_YOUR_CALM);
        return;
    }
    http2_block_end(&http2->head, HTTP2_BLOCK_ENDS);
    stream->in_trailers = http2->head;
    http2->head = (struct buffer){.data = NULL};
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

/* ---- its bounds ---- */

/* Frames that cost work and bring nothing: floods of them, and requests that are taken back at
 * once, are known attacks. */
static bool brings_nothing(uint8_t type, uint8_t flags, size_t size)
{
    switch (type) {
    case NGHTTP2_PING:
    case NGHTTP2_SETTINGS:
        return !(flags & NGHTTP2_FLAG_ACK);
    case NGHTTP2_PRIORITY:
    case NGHTTP2_RST_STREAM:
        return true;
    case NGHTTP2_DATA:
        return size == 0 && !(flags & NGHTTP2_FLAG_END_STREAM);
    default:
        return false;
    }
}

/* As a bucket that refills. False: there are too many. */
static bool is_within_bounds(struct http2 *http2, const nghttp2_frame_hd *head)
{
    uint64_t now_ms = worker_of(http2)->loop.now_ms, refill;

    if (!brings_nothing(head->type, head->flags, head->length))
        return true;
    refill = (now_ms - http2->refilled_ms) * REFILL_A_SECOND / 1000;
    if (refill > 0) {
        http2->refilled_ms = now_ms;
        http2->idle_frames -= refill < http2->idle_frames ? (uint32_t)refill : http2->idle_frames;
    }
    return ++http2->idle_frames <= MOST_IDLE_FRAMES;
}

/* ---- what must not come ---- */

/* Of a head for a stream that is not open any more, which libnghttp2 ignores. */
static uint32_t fault_of_past(struct http2 *http2, int32_t id)
{
    switch (http2_past_fate(&http2->past, (uint32_t)id)) {
    case FATE_SKIPPED:
        return NGHTTP2_PROTOCOL_ERROR;
    case FATE_ENDED:
        return NGHTTP2_STREAM_CLOSED;
    case FATE_RESET: /* an error of the stream alone; once, so that it costs nothing */
        http2_past_forget(&http2->past, (uint32_t)id);
        nghttp2_submit_rst_stream(session_of(http2), NGHTTP2_FLAG_NONE, id, NGHTTP2_STREAM_CLOSED);
        schedule(http2);
        return NGHTTP2_NO_ERROR;
    default:
        return NGHTTP2_NO_ERROR;
    }
}

/* What a client sends against the rules and libnghttp2 does not mind: an error of RFC 9113, 7. */
static uint32_t find_fault(struct http2 *http2, const nghttp2_frame_hd *head)
{
    if (head->type == NGHTTP2_PRIORITY) /* which libnghttp2 does not even look at */
        return head->stream_id == 0 ? NGHTTP2_PROTOCOL_ERROR : NGHTTP2_NO_ERROR;
    if (head->type != NGHTTP2_HEADERS || find_stream(http2, head->stream_id))
        return NGHTTP2_NO_ERROR;
    if ((uint32_t)head->stream_id <= http2->past.newest)
        return fault_of_past(http2, head->stream_id);
    http2_past_opened(&http2->past, (uint32_t)head->stream_id);
    return NGHTTP2_NO_ERROR;
}

static int on_begin_frame(nghttp2_session *session, const nghttp2_frame_hd *head, void *user)
{
    struct http2 *http2 = user;

    (void)session;
    if (http2->closed)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    if (http2->downstream)
        http2->fault = find_fault(http2, head);
    return http2->fault == NGHTTP2_NO_ERROR ? 0 : NGHTTP2_ERR_CALLBACK_FAILURE;
}

/* ---- what else comes ---- */

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data,
                   size_t size, void *user)
{
    struct http2 *http2 = user;
    struct http2_stream *stream = find_stream(http2, id);

    (void)flags;
    if (http2->closed)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    if (!stream || !stream->stream) {
        require(http2, nghttp2_session_consume(session, id, size));
        return 0;
    }
    stream->active_ms = worker_of(http2)->loop.now_ms;
    if (http2->uplink)
        require(http2, nghttp2_session_consume_connection(session, size));
    if (buffer_held(&stream->in) == 0 && !stream->passing && is_taken(stream)) {
        stream->locks++;
        stream->passing = true;
        pass_data(stream, data, size);
        stream->passing = false;
        unlock(stream);
        return 0;
    }
    if (!buffer_add(blocks_of(http2), &stream->in, data, size)) {
        give_credit(stream, size);
        reset(stream, NGHTTP2_INTERNAL_ERROR);
    }
    return 0;
}

static enum processed processed(const struct http2 *http2, uint32_t code)
{
    if (code != NGHTTP2_REFUSED_STREAM)
        return PROCESSED_PERHAPS;
    return http2->goes_away ? PROCESSED_AWAY : PROCESSED_REFUSED;
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
        stream_uplink_reset(ours, code, processed(stream->http2, code));
    }
}

static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t code, void *user)
{
    struct http2 *http2 = user;
    struct http2_stream *stream = find_stream(http2, id);

    if (!stream)
        return 0;
    nghttp2_session_set_stream_user_data(session, id, NULL);
    stream->closed = true;
    if (stream->in_ended || stream->in_reset)
        http2_past_ended(&http2->past, (uint32_t)id, stream->in_reset);
    release_out(stream);
    stream->locks++;
    if (stream->stream)
        lose(stream, code);
    unlock(stream); /* it may stay until what came is passed on */
    if (http2->closed)
        return 0;
    if (http2->uplink)
        uplink_has_room(http2->uplink);
    else
        schedule(http2); /* perhaps it was the last one */
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
            on_stream_close(session_of(http2), stream->id, NGHTTP2_REFUSED_STREAM, http2);
    }
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct http2 *http2 = user;
    struct http2_stream *stream =
        frame->hd.stream_id ? find_stream(http2, frame->hd.stream_id) : NULL;

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
        if (http2->uplink)
            uplink_has_room(http2->uplink);
        break;
    default:
        break;
    }
    return is_within_bounds(http2, &frame->hd) ? 0 : NGHTTP2_ERR_CALLBACK_FAILURE;
}

/* ---- what goes ---- */

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
    int result = nghttp2_submit_trailer(session_of(stream->http2), stream->id, pairs, count);

    buffer_release(blocks_of(stream->http2), trailers);
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
    stream->active_ms = worker_of(http2)->loop.now_ms;
    if (stream->lent) {
        stream->lent += size;
        stream->lent_size -= size;
    } else {
        buffer_drop(blocks_of(http2), &stream->out, size);
        http2->out_bytes -= size;
    }
    if (stream->behind && unsent(stream) <= OUT_BEHIND_BYTES / 2)
        tell_sent(stream);
    return 0;
}

/* False: it was closed meanwhile. */
static bool leave_session(struct http2 *http2)
{
    http2->inside = false;
    if (!http2->closed)
        return true;
    destroy_unless_used(http2);
    return false;
}

void http2_fill(struct http2 *http2)
{
    const uint8_t *data;
    ssize_t size = 0;

    if (http2->inside || !http2->session)
        return;
    http2->inside = true;
    while (!http2->closed && buffer_held(&http2->wire->out) <= FILL_BYTES) {
        uint8_t *to;

        size = nghttp2_session_mem_send(session_of(http2), &data);
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
    if (leave_session(http2) && size < 0)
        wire_fail(http2->wire, ENOMEM);
}

bool http2_wants_to_write(const struct http2 *http2)
{
    return nghttp2_session_want_write(session_of(http2));
}

bool http2_is_over(const struct http2 *http2)
{
    return http2->broken ||
           (!nghttp2_session_want_read(session_of(http2)) && !http2_wants_to_write(http2));
}

static void resume(struct http2_stream *stream)
{
    if (stream->deferred) {
        stream->deferred = false;
        require(stream->http2, nghttp2_session_resume_data(session_of(stream->http2), stream->id));
    }
    schedule(stream->http2);
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
    unlock(stream);
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
    if (!buffer_add(blocks_of(http2), &stream->out, from + size - left, left))
        return false;
    http2->out_bytes += left;
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
        if (block.count > 0 &&
            !buffer_add(blocks_of(stream->http2), &stream->out_trailers, trailers, block.bytes))
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
    struct http2_stream *stream = open_stream(http2, 0);
    nghttp2_data_provider provider = {.source.ptr = stream, .read_callback = read_out};
    nghttp2_nv pairs[MOST_PAIRS];
    struct http2_block block;
    size_t count;

    if (!stream)
        return NULL;
    count = make_pairs(data, pairs, &block);
    stream->out_ended = block.flags & HTTP2_BLOCK_ENDS;
    stream->id = nghttp2_submit_request(session_of(http2), NULL, pairs, count,
                                        stream->out_ended ? NULL : &provider, stream);
    if (stream->id < 0) {
        free_stream(stream);
        return NULL;
    }
    stream->stream = ours;
    stream->active_ms = worker_of(http2)->loop.now_ms;
    if (nghttp2_session_get_next_stream_id(session_of(http2)) >= NEARLY_LAST_STREAM)
        http2->uplink->leaving = true;
    schedule(http2);
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
        result = nghttp2_submit_headers(session_of(http2), NGHTTP2_FLAG_NONE, stream->id, NULL,
                                        pairs, count, NULL);
    } else {
        stream->out_ended = block.flags & HTTP2_BLOCK_ENDS;
        result = nghttp2_submit_response(session_of(http2), stream->id, pairs, count,
                                         stream->out_ended ? NULL : &provider);
    }
    schedule(http2);
    return result == 0;
}

/* A client's request that was answered before it has come whole, and of which nobody wants the rest
 * (RFC 9113, 8.1). */
static void stop_request(struct http2_stream *stream)
{
    if (stream->http2->downstream && stream->end_sent && !stream->in_ended && !stream->stream)
        reset(stream, NGHTTP2_NO_ERROR);
}

/* libnghttp2 had to reset it: a client may mean that, to have work begun that nobody wants. */
static void note_provoked(struct http2_stream *stream)
{
    if (stream->http2->downstream && !stream->is_reset)
        stream->http2->idle_frames++;
}

static int on_frame_sent(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct http2_stream *stream = find_stream(user, frame->hd.stream_id);
    uint8_t type = frame->hd.type;

    (void)session;
    if (!stream)
        return 0;
    if (type == NGHTTP2_RST_STREAM)
        note_provoked(stream);
    else if (type == NGHTTP2_HEADERS && stream->interim > 0)
        stream->interim--;
    if (!(frame->hd.flags & NGHTTP2_FLAG_END_STREAM) ||
        (type != NGHTTP2_DATA && type != NGHTTP2_HEADERS))
        return 0;
    stream->end_sent = true;
    stop_request(stream);
    return 0;
}

void http2_leave(struct http2_stream *stream, bool complete)
{
    size_t dropped = buffer_held(&stream->in);

    stream->locks++;
    stream->stream = NULL;
    release_in(stream);
    give_credit(stream, dropped);
    if (complete)
        stop_request(stream);
    else if (!stream->closed)
        reset(stream, stream->reset_code);
    unlock(stream);
}

/* ---- the connection ---- */

/* Written by hand: libnghttp2 may have given up. */
void http2_say_goodbye(struct http2 *http2, uint32_t error)
{
    uint8_t *to = wire_room(http2->wire, GOAWAY_BYTES);
    uint32_t last = (uint32_t)nghttp2_session_get_last_proc_stream_id(session_of(http2));
    const uint8_t head[] = {0, 0, 8, NGHTTP2_GOAWAY, 0, 0, 0, 0, 0};

    http2->broken = true;
    if (!to)
        return;
    memcpy(to, head, sizeof head);
    write_u32(to + FRAME_HEAD, last);
    write_u32(to + FRAME_HEAD + 4, error);
    wire_wrote(http2->wire, GOAWAY_BYTES);
}

static uint32_t error_for(const struct http2 *http2, ssize_t result)
{
    if (http2->fault)
        return http2->fault;
    switch (result) {
    case NGHTTP2_ERR_BAD_CLIENT_MAGIC:
        return NGHTTP2_PROTOCOL_ERROR;
    case NGHTTP2_ERR_NOMEM:
        return NGHTTP2_INTERNAL_ERROR;
    default: /* floods: those that libnghttp2 bounds, and ours */
        return NGHTTP2_ENHANCE_YOUR_CALM;
    }
}

size_t http2_take(struct http2 *http2, const uint8_t *data, size_t size)
{
    ssize_t result;

    if (http2->broken)
        return size;
    http2->inside = true;
    result = nghttp2_session_mem_recv(session_of(http2), data, size);
    if (!leave_session(http2))
        return size;
    if (result < 0) {
        http2_fill(http2);
        if (nghttp2_session_want_read(session_of(http2)))
            http2_say_goodbye(http2, error_for(http2, result));
        http2->broken = true;
    }
    schedule(http2);
    return size;
}

bool http2_has_room(const struct http2 *http2)
{
    nghttp2_session *session = session_of(http2);
    uint32_t most =
        nghttp2_session_get_remote_settings(session, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);

    if (most > MOST_UPSTREAM_STREAMS)
        most = MOST_UPSTREAM_STREAMS;
    return !http2->goes_away && !http2->broken && http2->stream_count < most &&
           nghttp2_session_check_request_allowed(session);
}

void http2_notice(struct http2 *http2)
{
    if (http2->noticed)
        return;
    http2->noticed = true;
    require(http2, nghttp2_submit_shutdown_notice(session_of(http2)));
    schedule(http2);
}

void http2_go_away(struct http2 *http2)
{
    nghttp2_session *session = session_of(http2);

    if (http2->goes_away)
        return;
    http2->goes_away = true;
    require(http2, nghttp2_submit_goaway(session, NGHTTP2_FLAG_NONE,
                                         nghttp2_session_get_last_proc_stream_id(session),
                                         NGHTTP2_NO_ERROR, NULL, 0));
    schedule(http2);
}

static nghttp2_session_callbacks *make_callbacks(void)
{
    nghttp2_session_callbacks *callbacks;

    if (nghttp2_session_callbacks_new(&callbacks) != 0)
        return NULL;
    nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, on_begin_frame);
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
    nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_frame_sent);
    nghttp2_session_callbacks_set_send_data_callback(callbacks, send_data);
    return callbacks;
}

/* libnghttp2 copies all of them. */
static bool open_session(struct http2 *http2)
{
    nghttp2_session_callbacks *callbacks = make_callbacks();
    nghttp2_mem memory = {
        .mem_user_data = &worker_of(http2)->streams->http2_memory,
        .malloc = http2_memory_take,
        .free = http2_memory_give,
        .calloc = http2_memory_take_zeros,
        .realloc = http2_memory_resize,
    };
    nghttp2_session *session = NULL;
    nghttp2_option *option = NULL;

    if (callbacks && nghttp2_option_new(&option) == 0) {
        nghttp2_option_set_no_auto_window_update(option, 1);
        nghttp2_option_set_max_send_header_block_length(option, MOST_SENT_HEAD);
        nghttp2_option_set_no_closed_streams(option, 1);
        if (nghttp2_option_set_stream_reset_rate_limit) /* ours comes first, see brings_nothing() */
            nghttp2_option_set_stream_reset_rate_limit(option, 2 * MOST_IDLE_FRAMES,
                                                       2 * REFILL_A_SECOND);
        if (http2->downstream)
            nghttp2_session_server_new3(&session, callbacks, http2, option, &memory);
        else
            nghttp2_session_client_new3(&session, callbacks, http2, option, &memory);
    }
    nghttp2_option_del(option);
    nghttp2_session_callbacks_del(callbacks);
    http2->session = (struct http2_session *)session;
    return session != NULL;
}

static bool submit_settings(struct http2 *http2)
{
    const struct limits *limits = worker_of(http2)->streams->limits;
    nghttp2_session *session = session_of(http2);
    nghttp2_settings_entry entries[] = {
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE,
         http2->downstream ? STREAM_WINDOW : FIRST_UPSTREAM_WINDOW},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, limits->head_bytes},
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, MOST_STREAMS},
        {NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES, 1},
    };
    size_t count = sizeof entries / sizeof *entries;

    if (!http2->downstream) {
        entries[2] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_ENABLE_PUSH, 0};
        count = 3;
    }
    return nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, entries, count) == 0 &&
           nghttp2_session_set_local_window_size(session, NGHTTP2_FLAG_NONE, 0,
                                                 http2->downstream ? CLIENT_WINDOW
                                                                   : UPSTREAM_WINDOW) == 0;
}

static struct http2 *open_http2(struct wire *wire, struct downstream *downstream,
                                struct uplink *uplink)
{
    struct http2 *http2 = calloc(1, sizeof *http2);

    if (!http2)
        return NULL;
    http2->wire = wire;
    http2->downstream = downstream;
    http2->uplink = uplink;
    if (!open_session(http2)) {
        free(http2);
        return NULL;
    }
    if (!submit_settings(http2)) {
        destroy_unless_used(http2);
        return NULL;
    }
    schedule(http2);
    return http2;
}

struct http2 *http2_open_downstream(struct downstream *downstream)
{
    return open_http2(&downstream->wire, downstream, NULL);
}

struct http2 *http2_open_uplink(struct uplink *uplink)
{
    return open_http2(&uplink->wire, NULL, uplink);
}

void http2_close(struct http2 *http2)
{
    if (!http2)
        return;
    buffer_release(blocks_of(http2), &http2->head);
    for (struct http2_stream *stream = http2->streams, *next; stream; stream = next) {
        next = stream->next;
        stream->closed = true;
        if (stream->locks == 0)
            free_stream(stream);
    }
    http2->closed = true;
    destroy_unless_used(http2);
}

bool http2_is_built_in(void)
{
    return true;
}

#else /* without libnghttp2 nothing is configured to use it: see dp_has_http2() */

bool http2_is_built_in(void)
{
    return false;
}

struct http2 *http2_open_downstream(struct downstream *downstream)
{
    (void)downstream;
    return NULL;
}

struct http2 *http2_open_uplink(struct uplink *uplink)
{
    (void)uplink;
    return NULL;
}

void http2_close(struct http2 *http2)
{
    (void)http2;
}

size_t http2_take(struct http2 *http2, const uint8_t *data, size_t size)
{
    (void)http2, (void)data;
    return size;
}

void http2_fill(struct http2 *http2)
{
    (void)http2;
}

bool http2_wants_to_write(const struct http2 *http2)
{
    (void)http2;
    return false;
}

bool http2_is_over(const struct http2 *http2)
{
    (void)http2;
    return true;
}

void http2_notice(struct http2 *http2)
{
    (void)http2;
}

void http2_go_away(struct http2 *http2)
{
    (void)http2;
}

void http2_say_goodbye(struct http2 *http2, uint32_t error)
{
    (void)http2, (void)error;
}

bool http2_has_room(const struct http2 *http2)
{
    (void)http2;
    return false;
}

struct http2_stream *http2_request(struct http2 *http2, struct stream *stream, const uint8_t *block)
{
    (void)http2, (void)stream, (void)block;
    return NULL;
}

bool http2_respond(struct http2_stream *stream, const uint8_t *block, bool interim)
{
    (void)stream, (void)block, (void)interim;
    return false;
}

bool http2_write(struct http2_stream *stream, const void *data, size_t size)
{
    (void)stream, (void)data, (void)size;
    return false;
}

bool http2_write_end(struct http2_stream *stream, const uint8_t *trailers)
{
    (void)stream, (void)trailers;
    return false;
}

bool http2_is_behind(const struct http2_stream *stream)
{
    (void)stream;
    return false;
}

void http2_pass_on(struct http2_stream *stream)
{
    (void)stream;
}

void http2_leave(struct http2_stream *stream, bool complete)
{
    (void)stream, (void)complete;
}

void http2_free_spares(struct streams *streams)
{
    (void)streams;
}

#endif
