#include <assert.h>

#include "l7/message.h"
#include "l7/pool.h"
#include "l7/stream_parts.h"
#include "l7/uplink.h"

/* ---- its head ---- */

/* How much longer the request may become, see ENCODING_ROOM. */
static size_t rewriting_room(const struct adjustment *adjustment)
{
    const struct rewrite *rewrite = adjustment->rewrite;
    size_t room = ENCODING_ROOM;

    if (adjustment->trace)
        room += trace_fields_size(adjustment->trace, 8);
    if (!rewrite)
        return room;
    room += rewrite->host.size + rewrite->path_prefix.size + rewrite->original_destination.size +
            adjustment->original_destination.size;
    for (uint32_t i = 0; i < rewrite->set_count; i++)
        room += rewrite->set[i].name.size + rewrite->set[i].value.size + 8;
    return room;
}

/* As it is to be sent, for an uplink that is not there yet, or for another attempt. */
static bool keep_request(struct stream *stream, const struct message *request,
                         const struct adjustment *adjustment, size_t room)
{
    struct blocks *blocks = &stream_worker(stream)->streams->blocks;
    uint8_t *to = buffer_room(blocks, &stream->request, room);
    size_t size = to ? stream->codec->encode(&stream->encoder, request, adjustment, to, room) : 0;

    if (size == 0) {
        buffer_release(blocks, &stream->request);
        return false;
    }
    stream->request.end += (uint32_t)size;
    stream->head_bytes = (uint32_t)size;
    stream->keeps = true;
    return true;
}

void stream_send(struct stream *stream, const struct message *request,
                 struct adjustment *adjustment, size_t size)
{
    size_t room = size + rewriting_room(adjustment);

    if (stream->up->encodes_at_once) {
        if (!keep_request(stream, request, adjustment, room)) {
            stream_fail(stream, DP_FLAG_OVERLOAD, NULL);
            return;
        }
    } else {
        stream->fresh = request;
        stream->fresh_room = room;
        stream->adjustment = adjustment;
    }
    stream->binds = stream->up->takes_turns && !stream->direct &&
                    message_binds_connection(request, TEXT("authorization"));
    if (!stream_hold(stream))
        stream_try_next(stream, DP_FLAG_NO_ENDPOINT);
    stream->fresh = NULL;
}

bool stream_keep(struct stream *stream)
{
    const struct message *fresh = stream->fresh;

    stream->fresh = NULL;
    if (!fresh)
        return true;
    stream->adjustment->id = 0;
    return keep_request(stream, fresh, stream->adjustment, stream->fresh_room);
}

void stream_assigned(struct stream *stream, struct uplink *uplink)
{
    struct downstream *downstream = stream->downstream;

    if (!uplink_begin(uplink, stream)) {
        stream_leave_pool(stream, false);
        stream_fail(stream, DP_FLAG_OVERLOAD, NULL);
        return;
    }
    if (!stream->up->send(stream, uplink)) {
        stream_fail(stream, DP_FLAG_OVERLOAD, NULL);
        return;
    }
    stream_attempt_begins(stream);
    if (stream->oneway) {
        stream_end(stream, true);
        downstream_answered(downstream);
        return;
    }
    uplink->leaving |= stream->binds;
    if (!stream->shadow && !downstream->wire.running) /* else it is not known what was read */
        downstream_pass_end(downstream);
    if (!stream->keeps)
        buffer_release(&stream_worker(stream)->streams->blocks, &stream->request);
    stream->down->update(stream);
}

/* ---- its beginning ---- */

void stream_begin(struct downstream *downstream, const struct message *request, size_t consumed)
{
    struct stream *stream = stream_create(downstream, request);

    if (!stream) {
        downstream_cut(downstream, DP_END_NO_RESOURCES);
        return;
    }
    stream->record.bytes_sent = consumed;
    stream->counted_bytes = (uint32_t)consumed;
    downstream->frame_bytes += consumed;
    stream->complete = !request->has_body;
    stream_find_way(stream, request);
}

void stream_refuse(struct downstream *downstream, const struct message *request,
                   const struct message *problem)
{
    struct stream *stream = stream_create(downstream, request);

    if (!stream) {
        downstream_cut(downstream, DP_END_NO_RESOURCES);
        return;
    }
    stream->oneway = stream->down->by_id;
    stream_fail(stream, DP_FLAG_MALFORMED_REQUEST, problem);
}

/* Also for another attempt, while that is possible. */
static void keep_more(struct stream *stream, const void *data, size_t size)
{
    struct blocks *blocks = &stream_worker(stream)->streams->blocks;

    if (!stream->keeps)
        return;
    if (buffer_held(&stream->request) + size <= KEPT_BYTES &&
        buffer_add(blocks, &stream->request, data, size))
        return;
    stream->keeps = false;
    if (stream->uplink)
        buffer_release(blocks, &stream->request);
}

/* What was written may have ended it. */
static void update(struct stream *stream)
{
    if (!stream->ended)
        stream->down->update(stream);
}

void stream_request_data(struct stream *stream, const struct message *message, size_t consumed)
{
    stream->record.bytes_sent += consumed;
    assert(stream->uplink); /* nothing is read before */
    keep_more(stream, message->data.at, message->data.size);
    if (stream->up->data(stream, message))
        update(stream);
    else
        stream_fail(stream, DP_FLAG_OVERLOAD, NULL);
}

void stream_request_end(struct stream *stream, const struct message *message, size_t consumed)
{
    stream->record.bytes_sent += consumed;
    stream->complete = true;
    stream->complete_ms = stream_worker(stream)->loop.now_ms;
    if (message->field_count > 0) /* trailers are not kept */
        stream->keeps = false;
    if (stream->uplink && !stream->up->end(stream, message, consumed)) {
        stream_fail(stream, DP_FLAG_OVERLOAD, NULL);
        return;
    }
    if (stream->answered && !stream->ended) {
        stream_end(stream, true);
        downstream_answered(stream->downstream);
        return;
    }
    if (stream->uplink && !stream->ended)
        stream_attempt_begins(stream);
    update(stream);
}

void stream_request_malformed(struct stream *stream, const struct message *message)
{
    stream->downstream->closing = true;
    stream_fail(stream,
                stream->downstream->wire.told_end ? DP_FLAG_DOWNSTREAM_CLOSED
                                                  : DP_FLAG_MALFORMED_REQUEST,
                message);
}
