/* Connections that speak HTTP/2. Heads are blocks (l7/http2_head.h), bodies and trailers wait in
 * the stream of the connection (l7/http2.h). */
#include "l7/grpc.h"
#include "l7/http2.h"
#include "l7/http2_head.h"
#include "l7/http1_passing.h"
#include "l7/stream_parts.h"
#include "l7/uplink.h"

enum { INTERNAL_ERROR = 2 }; /* RFC 9113, 7 */

static struct blocks *blocks_of(const struct stream *stream)
{
    return &stream->downstream->wire.worker->streams->blocks;
}

/* ---- the answer ---- */

static void begin(struct stream *stream, const struct message *request)
{
    stream->from = request->carrier;
    if (stream->from) /* else it has no client of its own */
        stream->from->stream = stream;
}

static enum dp_flag write_head(struct stream *stream, const struct message *message, size_t size)
{
    struct adjustment adjustment = {.facts = stream->facts};
    size_t room = size + ENCODING_ROOM + (size_t)message->field_count * 8;
    struct buffer block = {.data = NULL};
    uint8_t *to = buffer_room(blocks_of(stream), &block, room);
    bool interim = message->kind == MESSAGE_INTERIM;
    struct encoder encoder;
    enum dp_flag result = DP_FLAG_OVERLOAD;
    size_t wrote;

    if (!to)
        return result;
    wrote = codec_http2.encode(&encoder, message, &adjustment, to, room);
    if (wrote == 0)
        result = DP_FLAG_MALFORMED_RESPONSE;
    else if (http2_respond(stream->from, to, interim))
        result = DP_FLAG_NONE;
    stream->record.bytes_received += wrote;
    buffer_release(blocks_of(stream), &block);
    return result;
}

static enum dp_flag write_data(struct stream *stream, const struct message *message)
{
    stream->record.bytes_received += message->data.size;
    return http2_write(stream->from, message->data.at, message->data.size) ? DP_FLAG_NONE
                                                                           : DP_FLAG_OVERLOAD;
}

/* Ends a side with the trailers of a message. */
static bool write_trailers(struct stream *stream, struct http2_stream *to,
                           const struct message *message)
{
    struct buffer block = {.data = NULL};
    size_t room = ENCODING_ROOM;
    uint8_t *at;
    bool done;

    if (message->field_count == 0)
        return http2_write_end(to, NULL);
    for (uint32_t i = 0; i < message->field_count; i++)
        room += 8 + message->fields[i].name.size + message->fields[i].value.size;
    at = buffer_room(blocks_of(stream), &block, room);
    done = at && http2_encode_trailers(message, at, room) > 0 && http2_write_end(to, at);
    buffer_release(blocks_of(stream), &block);
    return done;
}

static enum dp_flag write_end(struct stream *stream, const struct message *message, size_t size)
{
    stream->record.bytes_received += size;
    return write_trailers(stream, stream->from, message) ? DP_FLAG_NONE : DP_FLAG_OVERLOAD;
}

static bool refuse(struct stream *stream, struct rejection *rejection)
{
    struct buffer answer = {.data = NULL};
    uint8_t *to = buffer_room(blocks_of(stream), &answer, ENCODING_ROOM);
    size_t size = to ? codec_http2.reject(&stream->facts, 0, rejection, to, ENCODING_ROOM) : 0;
    struct http2_block block;
    bool done = false;

    if (size > 0) {
        http2_read_block(to, &block);
        done = http2_respond(stream->from, to, false) &&
               http2_write(stream->from, to + block.bytes, size - block.bytes) &&
               http2_write_end(stream->from, NULL);
        stream->record.bytes_received += size;
    }
    buffer_release(blocks_of(stream), &answer);
    return done;
}

/* Ends a call of gRPC with its status. */
static bool write_grpc_end(struct stream *stream, const struct rejection *rejection)
{
    struct buffer block = {.data = NULL};
    uint8_t *at = buffer_room(blocks_of(stream), &block, ENCODING_ROOM);
    bool done = at && http2_encode_grpc_end(rejection, at, ENCODING_ROOM) > 0 &&
                http2_write_end(stream->from, at);

    buffer_release(blocks_of(stream), &block);
    return done;
}

/* A call of gRPC still gets its status, as trailers; other answers are reset. */
static enum dp_end cut(struct stream *stream, enum dp_end why)
{
    uint32_t status;
    const struct rejection rejection = {
        .flag = why == DP_END_UPSTREAM_TIMEOUT ? DP_FLAG_TIMEOUT : DP_FLAG_UPSTREAM_RESET,
        .status = &status,
    };

    if (stream->facts.grpc && stream->reset_code == 0 && write_grpc_end(stream, &rejection))
        stream_note_grpc(stream, (uint8_t)status);
    else
        stream->from->reset_code = stream->reset_code ? stream->reset_code : INTERNAL_ERROR;
    return DP_END_NONE;
}

static bool answer_is_behind(const struct stream *stream)
{
    return http2_is_behind(stream->from);
}

static bool has_unsent(const struct stream *stream)
{
    return buffer_held(&stream->from->out) > 0;
}

static void update(struct stream *stream)
{
    http2_pass_on(stream->from);
}

static void leave(struct stream *stream)
{
    struct http2_stream *from = stream->from;

    stream->from = NULL;
    if (from)
        http2_leave(from, from->out_ended);
}

static bool pass_reset(struct stream *stream, uint32_t code)
{
    stream->from->reset_code = code;
    return true;
}

const struct downstream_side http2_downstream = {
    .goes_on = true,
    .begin = begin,
    .head = write_head,
    .data = write_data,
    .end = write_end,
    .refuse = refuse,
    .take_back = side_take_nothing_back,
    .cut = cut,
    .pass_reset = pass_reset,
    .is_behind = answer_is_behind,
    .has_unsent = has_unsent,
    .update = update,
    .plain_wire = side_no_wire,
    .leave = leave,
};

/* ---- the request ---- */

static bool send_data(struct stream *stream, const struct message *message)
{
    return http2_write(stream->to, message->data.at, message->data.size);
}

static bool send_end(struct stream *stream, const struct message *message, size_t size)
{
    (void)size;
    return write_trailers(stream, stream->to, message);
}

static bool send_request(struct stream *stream, struct uplink *uplink)
{
    const uint8_t *kept = stream->request.data + stream->request.start;
    size_t body = buffer_held(&stream->request) - stream->head_bytes;

    stream->to = http2_request(uplink->http2, stream, kept);
    if (!stream->to || !http2_write(stream->to, kept + stream->head_bytes, body))
        return false;
    return !stream->complete || http2_write_end(stream->to, NULL);
}

static bool goes_on(const struct stream *stream)
{
    return stream->to && !stream->to->closed;
}

static bool request_is_behind(const struct stream *stream)
{
    return stream->to && http2_is_behind(stream->to);
}

static void go_on(struct stream *stream)
{
    if (stream->to)
        http2_pass_on(stream->to);
}

static bool is_held(const struct stream *stream)
{
    return stream->to && buffer_held(&stream->to->in) > 0;
}

static uint64_t active_ms(const struct stream *stream)
{
    return stream->to ? stream->to->active_ms : 0;
}

/* What comes for one is the other's from now on. */
static void adopt(struct uplink *uplink, struct stream *from, struct stream *to)
{
    to->uplink = uplink;
    to->to = from->to;
    to->to->stream = to;
    from->uplink = NULL;
    from->to = NULL;
}

static bool is_unanswered(const struct stream *stream)
{
    return !stream->answering;
}

const struct upstream_side http2_upstream = {
    .encodes_at_once = true,
    .send = send_request,
    .data = send_data,
    .end = send_end,
    .goes_on = goes_on,
    .is_behind = request_is_behind,
    .hold = side_do_nothing, /* nothing is passed on while the client is behind */
    .go_on = go_on,
    .is_held = is_held,
    .active_ms = active_ms,
    .is_unsent = side_is_unsent, /* nothing of anybody's was */
    .is_unanswered = is_unanswered,
    .adopt = adopt,
    .plain_wire = side_no_wire,
};
