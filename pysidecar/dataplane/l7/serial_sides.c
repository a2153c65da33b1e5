/* Connections on which one request follows the other: bodies pass piece by piece, and of long ones
 * the rest is spliced where both sides are such connections. */
#include "l7/downstream.h"
#include "l7/sides.h"
#include "l7/stream.h"
#include "l7/uplink.h"

/* ---- the answer ---- */

static uint64_t total_written(const struct wire *wire)
{
    return wire->written + buffer_held(&wire->out);
}

static enum dp_flag write_head(struct stream *stream, const struct message *message, size_t size)
{
    if (message->kind != MESSAGE_INTERIM)
        stream->answer_at = total_written(&stream->downstream->wire);
    return side_write_head(stream, message, size);
}

/* What is left of a body goes from one wire to the other by itself, where that is worth it. */
static void splice(struct wire *from, struct wire *to)
{
    if (from && !wire_is_behind(to))
        wire_splice_to(from, to);
}

static enum dp_flag write_data(struct stream *stream, const struct message *message)
{
    struct wire *wire = &stream->downstream->wire;
    uint64_t before = total_written(wire), now;

    if (!wire_send_body(wire, message->data.at, message->data.size))
        return DP_FLAG_OVERLOAD;
    now = total_written(wire);
    if (now > before)
        stream->record.bytes_received += now - before;
    splice(stream->up->plain_wire(stream), wire);
    return DP_FLAG_NONE;
}

static enum dp_flag write_end(struct stream *stream, const struct message *message, size_t size)
{
    struct downstream *downstream = stream->downstream;
    struct wire *wire = &downstream->wire;
    size_t room = size + ENCODING_ROOM;
    uint8_t *to;

    if (wire->encoder.chunked) {
        to = wire_room(wire, room);
        if (!to)
            return DP_FLAG_OVERLOAD;
        side_wrote(stream, wire->codec->end(&wire->encoder, message, to, room));
    }
    if (wire->encoder.close || !stream->complete)
        downstream->closing = true;
    return DP_FLAG_NONE;
}

static bool refuse(struct stream *stream, struct rejection *rejection)
{
    struct downstream *downstream = stream->downstream;

    rejection->close = !stream->complete || !stream->facts.keep_alive || downstream->closing ||
                       downstream_is_draining(downstream);
    if (!side_write_refusal(stream, rejection))
        return false;
    if (rejection->close)
        downstream->closing = true;
    return true;
}

static bool take_back(struct stream *stream)
{
    struct wire *wire = &stream->downstream->wire;
    uint64_t size = total_written(wire) - stream->answer_at;

    if (wire->error || wire->written > stream->answer_at)
        return false;
    wire->out.end -= (uint32_t)size;
    stream->record.bytes_received -= size;
    return true;
}

/* The next answer would be taken for the rest of this one. */
static enum dp_end cut(struct stream *stream, enum dp_end why)
{
    (void)stream;
    return why;
}

static bool downstream_is_behind(const struct stream *stream)
{
    return wire_is_behind(&stream->downstream->wire);
}

static void update(struct stream *stream)
{
    struct wire *wire = &stream->downstream->wire;

    downstream_update(stream->downstream);
    if (wire->spliced_to && !wire->paused)
        wire_resume(wire); /* its pipe waited, or the next piece for it */
}

static struct wire *downstream_plain_wire(const struct stream *stream)
{
    return &stream->downstream->wire;
}

const struct downstream_side serial_downstream = {
    .head = write_head,
    .data = write_data,
    .end = write_end,
    .refuse = refuse,
    .take_back = take_back,
    .cut = cut,
    .is_behind = downstream_is_behind,
    .has_unsent = side_has_unsent,
    .update = update,
    .plain_wire = downstream_plain_wire,
};

/* ---- the request ---- */

static bool send_data(struct stream *stream, const struct message *message)
{
    struct wire *wire = &stream->uplink->wire;

    if (!wire_send_body(wire, message->data.at, message->data.size))
        return false;
    splice(stream->down->plain_wire(stream), wire);
    return true;
}

static bool send_end(struct stream *stream, const struct message *message, size_t size)
{
    struct wire *wire = &stream->uplink->wire;
    size_t room = size + ENCODING_ROOM;
    uint8_t *to;

    if (!wire->encoder.chunked)
        return true;
    to = wire_room(wire, room);
    if (!to)
        return false;
    wire_wrote(wire, wire->codec->end(&wire->encoder, message, to, room));
    return true;
}

static bool send_request(struct stream *stream, struct uplink *uplink)
{
    static const struct message nothing = {0};
    struct wire *wire = &uplink->wire;
    const uint8_t *kept = stream->request.data + stream->request.start;
    size_t body = buffer_held(&stream->request) - stream->head_bytes;
    uint8_t *to = wire_room(wire, stream->head_bytes);

    if (!to)
        return false;
    memcpy(to, kept, stream->head_bytes);
    wire_wrote(wire, stream->head_bytes);
    return wire_send_body(wire, kept + stream->head_bytes, body) &&
           (!stream->complete || send_end(stream, &nothing, 0));
}

static bool upstream_is_behind(const struct stream *stream)
{
    return wire_is_behind(&stream->uplink->wire);
}

static void hold(struct stream *stream)
{
    wire_pause(&stream->uplink->wire);
}

static void go_on(struct stream *stream)
{
    wire_resume(&stream->uplink->wire);
}

static bool is_held(const struct stream *stream)
{
    return wire_is_held_back(&stream->uplink->wire);
}

static uint64_t active_ms(const struct stream *stream)
{
    return stream->uplink->wire.last_active_ms;
}

static bool is_unanswered(const struct stream *stream)
{
    return stream->uplink->wire.read == stream->read_before;
}

static struct wire *upstream_plain_wire(const struct stream *stream)
{
    return &stream->uplink->wire;
}

const struct upstream_side serial_upstream = {
    .encodes_at_once = true,
    .takes_turns = true,
    .send = send_request,
    .data = send_data,
    .end = send_end,
    .adopt = uplink_replace,
    .goes_on = side_never,
    .is_behind = upstream_is_behind,
    .hold = hold,
    .go_on = go_on,
    .is_held = is_held,
    .active_ms = active_ms,
    .is_unsent = side_is_unsent,
    .is_unanswered = is_unanswered,
    .plain_wire = upstream_plain_wire,
};
