#include "l7/sides.h"

#include "l7/downstream.h"
#include "l7/stream.h"
#include "l7/uplink.h"

const struct downstream_side *downstream_side_of(const struct codec *codec)
{
    if (codec->is_http2)
        return &http2_downstream;
    return codec->multiplexes ? &frame_downstream : &serial_downstream;
}

const struct upstream_side *upstream_side_of(const struct codec *codec)
{
    if (codec->is_http2)
        return &http2_upstream;
    return codec->multiplexes ? &frame_upstream : &serial_upstream;
}

void side_wrote(struct stream *stream, size_t size)
{
    struct wire *wire = &stream->downstream->wire;

    wire_wrote(wire, size);
    if (!wire->error)
        stream->record.bytes_received += size;
}

enum dp_flag side_write_head(struct stream *stream, const struct message *message, size_t size)
{
    struct downstream *downstream = stream->downstream;
    struct wire *wire = &downstream->wire;
    size_t room = size + ENCODING_ROOM;
    struct adjustment adjustment = {
        .id = stream->id,
        .facts = stream->facts,
        .direct = stream->direct,
        .close = downstream->closing || downstream_is_draining(downstream) || !stream->complete ||
                 (stream->direct && message->last),
    };
    uint8_t *to = wire_room(wire, room);
    size_t wrote;

    wire->encoder = (struct encoder){0};
    wrote = to ? wire->codec->encode(&wire->encoder, message, &adjustment, to, room) : 0;
    if (wrote == 0)
        return to ? DP_FLAG_MALFORMED_RESPONSE : DP_FLAG_OVERLOAD;
    side_wrote(stream, wrote);
    return DP_FLAG_NONE;
}

bool side_write_refusal(struct stream *stream, const struct rejection *rejection)
{
    struct wire *wire = &stream->downstream->wire;
    uint8_t *to = wire_room(wire, ENCODING_ROOM);
    size_t size =
        to ? wire->codec->reject(&stream->facts, stream->id, rejection, to, ENCODING_ROOM) : 0;

    if (size == 0)
        return false;
    side_wrote(stream, size);
    return true;
}

bool side_has_unsent(const struct stream *stream)
{
    return buffer_held(&stream->downstream->wire.out) > 0;
}

void side_update(struct stream *stream)
{
    downstream_update(stream->downstream);
}

bool side_is_unsent(const struct stream *stream)
{
    return stream->uplink->wire.written == stream->written_before;
}

bool side_never(const struct stream *stream)
{
    (void)stream;
    return false;
}

void side_do_nothing(struct stream *stream)
{
    (void)stream;
}

enum dp_flag side_drop_data(struct stream *stream, const struct message *message)
{
    (void)stream, (void)message;
    return DP_FLAG_NONE;
}

bool side_take_nothing_back(struct stream *stream)
{
    (void)stream;
    return false;
}

struct wire *side_no_wire(const struct stream *stream)
{
    (void)stream;
    return NULL;
}
