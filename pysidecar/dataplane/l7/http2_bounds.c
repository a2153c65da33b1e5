/* What a peer must not send, or not so much of, on a connection that speaks HTTP/2. */
#include "l7/downstream.h"
#include "l7/http2_parts.h"
#include "l7/stream_parts.h"

#if HAS_LIBNGHTTP2

/* Later versions, and earlier ones with Debian's fixes, have it. */
void nghttp2_option_set_stream_reset_rate_limit(nghttp2_option *, uint64_t, uint64_t)
    __attribute__((weak));

enum {
    MOST_SENT_HEAD = 1024 * 1024,
    /* See brings_nothing(). */
    MOST_IDLE_FRAMES = 2000,
    REFILL_A_SECOND = 500,
    /* Updates of windows that a frame of DATA earns, as in Envoy. */
    UPDATES_A_FRAME = 10,
    MOST_UPDATES = 100000,
    LEAST_TAKEN = 16 * 1024, /* of an answer, within the flush timeout */
};

/* ---- floods ---- */

/* Frames that cost work and bring nothing: floods of them, and requests that are taken back at
 * once, are known attacks. */
static bool brings_nothing(struct http2 *http2, uint8_t type, uint8_t flags, size_t size)
{
    switch (type) {
    case NGHTTP2_WINDOW_UPDATE:
        if (http2->updates == 0)
            return true;
        http2->updates--;
        return false;
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
bool http2_is_within_bounds(struct http2 *http2, const nghttp2_frame_hd *head)
{
    uint64_t now_ms = http2_worker_of(http2)->loop.now_ms, refill;

    if (!brings_nothing(http2, head->type, head->flags, head->length))
        return true;
    refill = (now_ms - http2->refilled_ms) * REFILL_A_SECOND / 1000;
    if (refill > 0) {
        http2->refilled_ms = now_ms;
        http2->idle_frames -= refill < http2->idle_frames ? (uint32_t)refill : http2->idle_frames;
    }
    return ++http2->idle_frames <= MOST_IDLE_FRAMES;
}

/* libnghttp2 had to reset it: a client may mean that, to have work begun that nobody wants. */
void http2_note_provoked(struct http2_stream *stream)
{
    if (stream->http2->downstream && !stream->is_reset)
        stream->http2->idle_frames++;
}

void http2_earn_updates(struct http2 *http2)
{
    if (http2->updates < MOST_UPDATES)
        http2->updates += UPDATES_A_FRAME;
}

bool http2_is_flooded(const struct http2 *http2)
{
    return http2->idle_frames > MOST_IDLE_FRAMES;
}

/* ---- what clients have ---- */

/* Before anything was done for it, so the client may send it again. */
struct share *http2_admit(struct http2 *http2, int32_t id)
{
    struct worker *worker = http2_worker_of(http2);
    struct share *share = downstream_share(http2->downstream);

    if (share_take_stream(&worker->streams->shares, share))
        return share;
    counter_add(&worker->counters.streams_refused, 1);
    http2_require(http2, nghttp2_submit_rst_stream(http2_session_of(http2), NGHTTP2_FLAG_NONE, id,
                                                   NGHTTP2_REFUSED_STREAM));
    http2_schedule(http2);
    return NULL;
}

void http2_note_taken(struct http2_stream *stream, size_t size)
{
    stream->taken += (uint32_t)size;
    if (buffer_held(&stream->out) > 0 && stream->taken < LEAST_TAKEN)
        return;
    stream->taken = 0;
    stream->unsent_since_ms =
        buffer_held(&stream->out) > 0 ? http2_worker_of(stream->http2)->loop.now_ms : 0;
}

bool http2_has_unsent(const struct http2 *http2)
{
    return http2->out_bytes > 0;
}

static void drop(struct http2_stream *stream)
{
    struct http2 *http2 = stream->http2;
    struct stream *ours = stream->stream;

    counter_add(&http2_worker_of(http2)->counters.streams_not_taken, 1);
    stream->locks++;
    http2_reset(stream, NGHTTP2_CANCEL);
    http2_release_out(stream);
    if (ours) {
        stream_set_flag(ours, DP_FLAG_NOT_TAKEN);
        stream_abandon(ours, DP_FLAG_DOWNSTREAM_CLOSED);
    }
    http2_unlock(stream);
}

void http2_drop_not_taken(struct http2 *http2)
{
    const struct worker *worker = http2_worker_of(http2);
    uint32_t flush_ms = timeout_of(&worker->timeouts->flush_ms);

    for (struct http2_stream *stream = http2->streams, *next; stream; stream = next) {
        next = stream->next;
        if (stream->unsent_since_ms && stream->unsent_since_ms + flush_ms <= worker->loop.now_ms)
            drop(stream);
    }
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
        nghttp2_submit_rst_stream(http2_session_of(http2), NGHTTP2_FLAG_NONE, id,
                                  NGHTTP2_STREAM_CLOSED);
        http2_schedule(http2);
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
    if (head->type != NGHTTP2_HEADERS || http2_find_stream(http2, head->stream_id))
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

/* ---- what libnghttp2 is told of it ---- */

void http2_bound(nghttp2_option *option)
{
    nghttp2_option_set_max_send_header_block_length(option, MOST_SENT_HEAD);
    /* Of values; on_header() takes it away. */
    nghttp2_option_set_no_rfc9113_leading_and_trailing_ws_validation(option, 1);
    if (nghttp2_option_set_stream_reset_rate_limit) /* ours comes first, see brings_nothing() */
        nghttp2_option_set_stream_reset_rate_limit(option, 2 * MOST_IDLE_FRAMES,
                                                   2 * REFILL_A_SECOND);
}

void http2_set_bounds(nghttp2_session_callbacks *callbacks)
{
    nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, on_begin_frame);
}

#endif
