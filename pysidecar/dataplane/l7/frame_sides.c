/* Connections that carry whole frames, of which many are under way: a request or an answer is all
 * there with its head. */
#include <errno.h>

#include "l7/downstream.h"
#include "l7/sides.h"
#include "l7/stream_parts.h"
#include "l7/streams.h"
#include "l7/uplink.h"

enum { MOST_UNSENT = 16 * 1024 * 1024 }; /* answers that wait for one client that does not read */

/* ---- the answer ---- */

/* The connection that the answer came on is others', too, and is not held back. */
static enum dp_flag write_end(struct stream *stream, const struct message *message, size_t size)
{
    struct wire *wire = &stream->downstream->wire;

    (void)message;
    if (buffer_held(&wire->out) > MOST_UNSENT + size + ENCODING_ROOM)
        wire_fail(wire, ENOMEM);
    return DP_FLAG_NONE;
}

/* The other requests on the connection go on. */
static bool refuse(struct stream *stream, struct rejection *rejection)
{
    return side_write_refusal(stream, rejection);
}

static enum dp_end cut(struct stream *stream, enum dp_end why)
{
    (void)stream;
    return why;
}

const struct downstream_side frame_downstream = {
    .by_id = true,
    .head = side_write_head,
    .data = side_drop_data,
    .end = write_end,
    .refuse = refuse,
    .take_back = side_take_nothing_back,
    .cut = cut,
    .is_behind = side_never,
    .has_unsent = side_has_unsent,
    .update = side_update,
    .plain_wire = side_no_wire,
};

/* ---- the request ---- */

/* A frame that was kept, with its id on the uplink. */
static size_t encode_kept(struct stream *stream, uint8_t *to, size_t room)
{
    const struct codec *codec = stream->codec;
    struct decoder decoder = {.limits = stream->downstream->wire.worker->streams->limits};
    struct adjustment adjustment = {.id = stream->upstream_id};
    struct message message = {0};
    size_t consumed;

    if (codec->decode(&decoder, stream->request.data + stream->request.start,
                      buffer_held(&stream->request), &consumed, &message) != CODEC_HEAD)
        return 0;
    return codec->encode(&stream->encoder, &message, &adjustment, to, room);
}

static size_t encode_fresh(struct stream *stream, uint8_t *to, size_t room)
{
    stream->adjustment->id = stream->upstream_id;
    return stream->codec->encode(&stream->encoder, stream->fresh, stream->adjustment, to, room);
}

/* Whether it may be sent a second time, to whomever. */
static bool is_worth_keeping(const struct stream *stream, size_t size)
{
    return size <= KEPT_BYTES &&
           (stream_has_retries(stream) || stream->hedge_ms > 0 || stream->mirror);
}

static bool keep_sent(struct stream *stream, const uint8_t *sent, size_t size)
{
    struct blocks *blocks = &stream->downstream->session->worker->streams->blocks;

    return buffer_add(blocks, &stream->request, sent, size);
}

static bool send_request(struct stream *stream, struct uplink *uplink)
{
    struct wire *wire = &uplink->wire;
    size_t room =
        stream->fresh ? stream->fresh_room : (size_t)buffer_held(&stream->request) + ENCODING_ROOM;
    uint8_t *to = wire_room(wire, room);
    size_t size;

    if (!to)
        return false;
    size = stream->fresh ? encode_fresh(stream, to, room) : encode_kept(stream, to, room);
    if (size == 0)
        return false;
    stream->keeps =
        is_worth_keeping(stream, size) && (!stream->fresh || keep_sent(stream, to, size));
    wire_wrote(wire, size);
    return true;
}

static bool send_nothing(struct stream *stream, const struct message *message)
{
    (void)stream, (void)message;
    return true;
}

static bool send_end(struct stream *stream, const struct message *message, size_t size)
{
    (void)stream, (void)message, (void)size;
    return true;
}

static uint64_t active_ms(const struct stream *stream)
{
    (void)stream;
    return 0;
}

static bool is_held(const struct stream *stream)
{
    return wire_is_held_back(&stream->uplink->wire);
}

const struct upstream_side frame_upstream = {
    .send = send_request,
    .data = send_nothing,
    .end = send_end,
    .adopt = uplink_replace,
    .goes_on = side_never,
    .is_behind = side_never,
    .hold = side_do_nothing,
    .go_on = side_do_nothing,
    .is_held = is_held,
    .active_ms = active_ms,
    .is_unsent = side_never,
    .is_unanswered = side_never,
    .plain_wire = side_no_wire,
};
