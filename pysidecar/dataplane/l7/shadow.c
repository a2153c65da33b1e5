#include "l7/shadow.h"

#include <stdlib.h>
#include <string.h>

#include "l7/message.h"
#include "l7/outcome.h"
#include "l7/pool.h"
#include "l7/stream_parts.h"
#include "l7/uplink.h"

enum {
    MOST_COPIES = 1024,          /* of a worker under way */
    LONGEST_COPY_MS = 60 * 1000, /* where the mirror has no timeout */
};

/* The client of copies: nothing that is written to it arrives anywhere. */
struct shadows {
    struct shadows *next;
    struct session session;
    struct downstream downstream;
};

/* ---- where answers go ---- */

static enum dp_flag drop_part(struct stream *stream, const struct message *message, size_t size)
{
    (void)stream, (void)message, (void)size;
    return DP_FLAG_NONE;
}

static bool drop_refusal(struct stream *stream, struct rejection *rejection)
{
    (void)stream, (void)rejection;
    return true;
}

/* Nobody has seen anything of it. */
static bool take_all_back(struct stream *stream)
{
    (void)stream;
    return true;
}

static enum dp_end cut_nothing(struct stream *stream, enum dp_end why)
{
    (void)stream, (void)why;
    return DP_END_NONE;
}

static const struct downstream_side nobody = {
    .head = drop_part,
    .data = side_drop_data,
    .end = drop_part,
    .refuse = drop_refusal,
    .take_back = take_all_back,
    .cut = cut_nothing,
    .is_behind = side_never,
    .has_unsent = side_never,
    .update = side_do_nothing,
    .plain_wire = side_no_wire,
};

/* ---- making them ---- */

/* The same request, to be sent on an uplink of the same kind. False when out of memory. */
static bool copy_request(struct stream *to, const struct stream *from)
{
    const struct buffer *kept = &from->request;

    to->codec = from->codec;
    to->up = from->up;
    to->down = &nobody;
    to->facts = from->facts;
    to->encoder = from->encoder;
    to->head_bytes = from->head_bytes;
    to->idempotent = from->idempotent;
    to->oneway = from->oneway;
    to->binds = from->binds;
    to->hash = from->hash;
    to->complete = to->keeps = true;
    to->complete_ms = stream_worker(to)->loop.now_ms;
    to->answer_at_ms = UINT64_MAX;
    return buffer_add(&stream_worker(to)->streams->blocks, &to->request, kept->data + kept->start,
                      buffer_held(kept));
}

static bool is_copyable(const struct stream *stream)
{
    return stream->complete && stream->keeps && !stream->facts.upgrade && !stream->facts.connect;
}

/* ---- hedging ---- */

bool shadow_is_good(const struct stream *stream, const struct message *message)
{
    if (message->has_grpc_status)
        return message->grpc_status == 0;
    if (protocol_family(stream->downstream->protocol) == DP_HTTP1)
        return message->status < 500;
    return message->succeeded;
}

void shadow_hedge(struct stream *stream)
{
    struct stream *twin;

    if (stream->twin || !stream->uplink || stream->answering || !is_copyable(stream) ||
        !stream->up->adopt)
        return;
    twin = stream_create_shadow(stream->downstream, SHADOW_TWIN);
    if (!twin)
        return;
    twin->first = stream;
    stream->twin = twin;
    stream_set_service(twin, stream->service);
    memcpy(twin->tried, stream->tried, sizeof twin->tried);
    twin->tried_count = stream->tried_count;
    if (!copy_request(twin, stream) || !stream_enter_retries(twin)) {
        stream->record.flags |= twin->record.flags & 1u << DP_FLAG_RETRY_LIMITED;
        shadow_drop_twin(stream);
        return;
    }
    stream_set_flag(stream, DP_FLAG_HEDGED);
    stream_try_next(twin, DP_FLAG_NO_ENDPOINT);
}

void shadow_drop_twin(struct stream *stream)
{
    if (stream->twin)
        stream_end(stream->twin, false);
}

void shadow_await_twin(struct stream *stream, enum dp_flag otherwise, bool complete)
{
    const struct dp_resilience *resilience = &stream->service->resilience;
    uint32_t ms = resilience->attempt_ms ? resilience->attempt_ms : stream->service->silent_ms;

    stream_leave_pool(stream, complete);
    stream->awaits_twin = true;
    stream->failed = otherwise;
    stream->attempt_at_ms = ms ? stream_worker(stream)->loop.now_ms + ms : 0;
    stream_set_timer(stream);
}

/* The stream goes on where its twin is. */
static void take_over(struct stream *stream, struct stream *twin)
{
    struct uplink *uplink = twin->uplink;

    stream_leave_pool(stream, false);
    stream_follow(stream, twin->service);
    stream->awaits_twin = false;
    stream->resume_at_ms = 0;
    stream->pool = twin->pool;
    twin->pool = NULL; /* what is counted of it stays */
    stream->record.upstream = twin->record.upstream;
    stream->tried_ns = twin->tried_ns;
    stream_note_tried(stream, stream->pool->endpoint);
    stream->up->adopt(uplink, twin, stream);
    stream_end(twin, false);
}

void shadow_twin_answered(struct stream *twin, const struct message *message, size_t size)
{
    struct stream *stream = twin->first;
    bool waits = !stream->awaits_twin;

    if (waits && !shadow_is_good(twin, message)) {
        outcome_note(twin, true);
        stream_end(twin, !twin->up->takes_turns);
        return;
    }
    take_over(stream, twin);
    stream_response(stream, CODEC_HEAD, message, size);
}

void shadow_twin_failed(struct stream *twin)
{
    struct stream *stream = twin->first;

    stream_end(twin, false);
    if (!stream->awaits_twin)
        return;
    stream->awaits_twin = false;
    stream->attempt_at_ms = 0;
    if (!stream_retry(stream, DP_RETRY_RESET, stream->failed))
        stream_fail(stream, stream->failed, NULL);
}

/* ---- mirrors ---- */

static struct shadows *find_client(struct worker *worker, const struct stream *of)
{
    const struct dp_listener *listener = stream_listener(of);
    struct shadows **all = &worker->streams->shadows, *found = *all;

    while (found && (found->session.origin.listener != listener ||
                     found->downstream.protocol != of->downstream->protocol))
        found = found->next;
    if (found)
        return found;
    found = calloc(1, sizeof *found);
    if (!found)
        return NULL;
    found->session.worker = worker;
    found->session.uid = UINT32_MAX;
    found->session.origin.listener = listener;
    found->downstream.session = &found->session;
    found->downstream.protocol = of->downstream->protocol;
    found->downstream.wire.codec = of->downstream->wire.codec;
    found->downstream.wire.worker = worker;
    found->downstream.wire.closed = true;
    found->downstream.side = &nobody;
    found->next = *all;
    *all = found;
    return found;
}

void shadow_choose_mirror(struct stream *stream, struct service *service)
{
    shared_reference(&service->shared);
    stream->mirror = service;
}

void shadow_forget_mirror(struct stream *stream)
{
    if (stream->mirror)
        shared_release(&stream->mirror->shared);
    stream->mirror = NULL;
}

static void send_copy(struct stream *stream, struct shadows *client)
{
    struct stream *copy = stream_create_shadow(&client->downstream, SHADOW_COPY);
    struct worker *worker = stream_worker(stream);
    uint32_t ms = stream->mirror->timeout_ms;

    if (!copy)
        return;
    worker->streams->copy_count++;
    stream_set_service(copy, stream->mirror);
    if (!copy_request(copy, stream)) {
        stream_end(copy, false);
        return;
    }
    copy->record.bytes_sent = stream->record.bytes_sent;
    stream_begin_timer(copy, ms ? ms : LONGEST_COPY_MS);
    if (!stream_enter_service(copy))
        return;
    stream_set_flag(stream, DP_FLAG_MIRRORED);
    stream_try_next(copy, DP_FLAG_NO_ENDPOINT);
}

void shadow_send_mirror(struct stream *stream)
{
    struct worker *worker = stream_worker(stream);
    struct shadows *client;

    if (!stream->mirror)
        return;
    client = is_copyable(stream) && worker->streams->copy_count < MOST_COPIES
                 ? find_client(worker, stream)
                 : NULL;
    if (client)
        send_copy(stream, client);
    shadow_forget_mirror(stream);
}

void shadows_close(struct worker *worker)
{
    struct shadows *client = worker->streams->shadows, *next;

    for (; client; client = next) {
        next = client->next;
        while (client->downstream.streams)
            stream_abandon(client->downstream.streams, DP_FLAG_DOWNSTREAM_CLOSED);
        free(client);
    }
    worker->streams->shadows = NULL;
}
