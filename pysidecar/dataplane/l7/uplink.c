#include "l7/uplink.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/owner.h"
#include "l7/downstream.h"
#include "l7/http2.h"
#include "l7/message.h"
#include "l7/streams.h"
#include "net/budget.h"

enum {
    FIRST_SLOTS = 16,
    MOST_SLOTS = 4096,        /* requests under way on one uplink */
    ID_MASK = 0x7fffffff,     /* ids of Bolt are signed */
    HEARTBEAT_MS = 15 * 1000, /* without a byte: SOFABolt's own interval */
};

static struct worker *worker_of(const struct uplink *uplink)
{
    return uplink->pool->worker;
}

/* ---- lists ---- */

static void unlink_it(struct uplink *uplink)
{
    if (!uplink->previous)
        return;
    *uplink->previous = uplink->next;
    if (uplink->next)
        uplink->next->previous = uplink->previous;
    uplink->previous = NULL;
}

static void link_to(struct uplink **list, struct uplink *uplink)
{
    unlink_it(uplink);
    uplink->next = *list;
    uplink->previous = list;
    if (*list)
        (*list)->previous = &uplink->next;
    *list = uplink;
}

/* ---- those under way ---- */

static struct stream **slot_of(const struct uplink *uplink, uint64_t id)
{
    return &uplink->streams[id & (uplink->slots - 1)];
}

static struct stream *find(const struct uplink *uplink, uint64_t id)
{
    struct stream *stream = uplink->slots ? *slot_of(uplink, id) : NULL;

    return stream && stream->upstream_id == id ? stream : NULL;
}

/* Twice as many slots: ids whose low bits differ still differ with one bit more. */
static bool grow(struct uplink *uplink)
{
    uint32_t slots = uplink->slots ? 2 * uplink->slots : FIRST_SLOTS;
    struct stream **streams, **old = uplink->streams;

    if (slots > MOST_SLOTS)
        return false;
    streams = calloc(slots, sizeof *streams);
    if (!streams)
        return false;
    for (uint32_t i = 0; i < uplink->slots; i++)
        if (old[i])
            streams[old[i]->upstream_id & (slots - 1)] = old[i];
    uplink->streams = streams;
    uplink->slots = slots;
    free(old);
    return true;
}

static bool begin_multiplexed(struct uplink *uplink, struct stream *stream)
{
    if (uplink->busy >= uplink->slots / 2 && !grow(uplink) && uplink->busy == uplink->slots)
        return false;
    do
        uplink->next_id = (uplink->next_id + 1) & ID_MASK;
    while (*slot_of(uplink, uplink->next_id));
    stream->upstream_id = uplink->next_id;
    *slot_of(uplink, stream->upstream_id) = stream;
    return true;
}

/* From now on it is one downstream's own, in place of the one that this may have had. */
static void give_to(struct uplink *uplink, struct downstream *owner)
{
    if (uplink->owner == owner)
        return;
    if (owner->own)
        uplink_close(owner->own, false);
    owner->own = uplink;
    uplink->owner = owner;
}

bool uplink_begin(struct uplink *uplink, struct stream *stream)
{
    const struct codec *codec = uplink->pool->codec;

    if (uplink->http2) {
        stream->to = NULL; /* until its head is sent */
    } else if (codec->multiplexes) {
        if (!begin_multiplexed(uplink, stream))
            return false;
    } else {
        assert(!uplink->stream);
        uplink->stream = stream;
        uplink->wire.encoder = stream->encoder;
        if (codec->expect)
            codec->expect(&uplink->wire.decoder, &stream->facts);
        link_to(&uplink->pool->busy, uplink);
        if (!pool_is_shared(uplink->pool))
            give_to(uplink, stream->downstream);
    }
    uplink->busy++;
    stream->uplink = uplink;
    stream->reused = uplink->used;
    stream->written_before = uplink->wire.written;
    stream->read_before = uplink->wire.read;
    uplink->used = true;
    return true;
}

/* Whether the answer was all that it sent, after it had the whole request. */
static bool is_clean(const struct uplink *uplink)
{
    const struct wire *wire = &uplink->wire;

    return !wire->broken && !wire->paused && !wire->error && !wire->channel->ended &&
           buffer_held(&wire->out) == 0;
}

static void leave_http2(struct stream *stream, bool complete)
{
    struct http2_stream *to = stream->to;

    stream->to = NULL;
    if (!to)
        return;
    if (stream->reset_code)
        to->reset_code = stream->reset_code; /* the client's */
    http2_leave(to, complete && to->in_ended);
}

void uplink_leave(struct uplink *uplink, struct stream *stream, bool complete)
{
    struct pool *pool = uplink->pool;

    stream->uplink = NULL;
    uplink->busy--;
    uplink->used_ms = pool->worker->loop.now_ms;
    if (pool->codec->multiplexes) {
        if (uplink->http2)
            leave_http2(stream, complete);
        else
            *slot_of(uplink, stream->upstream_id) = NULL;
        if (uplink->busy == 0 && (uplink->leaving || pool_is_wanted(pool)))
            uplink_close(uplink, false);
    } else {
        uplink->stream = NULL;
        if (!complete || uplink->leaving || !is_clean(uplink) || pool_is_wanted(pool))
            uplink_close(uplink, !complete);
        else if (pool_is_shared(pool))
            link_to(&pool->ready, uplink);
    }
    if (pool->waiting)
        task_schedule(&pool->worker->loop.tasks, &pool->serve);
}

void uplink_replace(struct uplink *uplink, struct stream *before, struct stream *now)
{
    if (uplink->pool->codec->multiplexes)
        *slot_of(uplink, before->upstream_id) = now;
    else
        uplink->stream = now;
    now->uplink = uplink;
    now->upstream_id = before->upstream_id;
    now->reused = before->reused;
    now->written_before = before->written_before;
    now->read_before = before->read_before;
    before->uplink = NULL;
}

bool uplink_is_ready(const struct uplink *uplink)
{
    const struct wire *wire = &uplink->wire;

    if (uplink->closed || uplink->leaving || uplink->connector || wire->error || wire->broken)
        return false;
    if (uplink->http2)
        return http2_has_room(uplink->http2) && buffer_held(&wire->out) < UPLINK_BEHIND_BYTES;
    if (uplink->pool->codec->multiplexes)
        return buffer_held(&wire->out) < UPLINK_BEHIND_BYTES && uplink->busy < MOST_SLOTS;
    /* What it sends now would be taken for the answer to the next request. */
    return !uplink->stream && buffer_held(&wire->in) == 0 && wire->decoder.state == 0 &&
           !wire->channel->readable && !watch_is_pending(&wire->channel->watch);
}

/* ---- what it brings ---- */

/* NULL: it is many clients'. */
static struct downstream *owner_of(const struct uplink *uplink)
{
    return uplink->pool->owner ? uplink->pool->owner : uplink->owner;
}

/* With nothing under way. Whose own it is ends with it, as it would without us. */
static void close_idle(struct uplink *uplink, bool reset)
{
    struct downstream *owner = owner_of(uplink);

    uplink_close(uplink, reset);
    if (owner)
        downstream_deserted(owner);
}

static struct stream *first_of(const struct http2 *http2)
{
    struct http2_stream *stream = http2 ? http2->streams : NULL;

    while (stream && !stream->stream)
        stream = stream->next;
    return stream ? stream->stream : NULL;
}

/* Everything under way on it fails. */
static void lose(struct uplink *uplink, enum dp_flag why)
{
    struct stream *stream;

    uplink->leaving = true;
    if (uplink->stream)
        stream_uplink_lost(uplink->stream, why);
    for (uint32_t i = 0; i < uplink->slots && uplink->busy > 0; i++)
        if (uplink->streams[i])
            stream_uplink_lost(uplink->streams[i], why);
    while ((stream = first_of(uplink->http2)))
        stream_uplink_lost(stream, why);
    close_idle(uplink, true);
}

static void write_heartbeat(struct uplink *uplink, const struct message *asked)
{
    const struct codec *codec = uplink->pool->codec;
    static const struct facts facts = {.heartbeat = true, .version = 0};
    size_t room = (asked ? asked->frame.size : 0) + ENCODING_ROOM, size;
    /* It may be one that asks and does not read. */
    uint8_t *to = wire_is_behind(&uplink->wire) ? NULL : wire_room(&uplink->wire, room);

    if (!to)
        return;
    if (asked) {
        size = codec->answer_heartbeat(asked, to, room);
    } else {
        uplink->next_id = (uplink->next_id + 1) & ID_MASK;
        size = codec->heartbeat(&facts, uplink->next_id, to, room);
    }
    wire_wrote(&uplink->wire, size);
}

/* A service that asks, as for a callback of Dubbo: the connection is that of many clients, and it
 * cannot be told whose. */
static void refuse(struct uplink *uplink, const struct message *request)
{
    const struct rejection rejection = {.flag = DP_FLAG_REFUSED};
    uint8_t *to = wire_room(&uplink->wire, ENCODING_ROOM);

    if (to)
        wire_wrote(&uplink->wire, uplink->pool->codec->reject(&request->facts, request->id,
                                                              &rejection, to, ENCODING_ROOM));
}

static void decoded_frame(struct uplink *uplink, const struct message *message)
{
    struct stream *stream;

    uplink->heartbeat_ms = 0; /* it lives */
    switch (message->kind) {
    case MESSAGE_RESPONSE:
        stream = find(uplink, message->id);
        if (!stream) /* it came too late */
            break;
        stream_response(stream, CODEC_HEAD, message, message->frame.size);
        stream = find(uplink, message->id); /* it may be over, or another one's answer now */
        if (stream)
            stream_response(stream, CODEC_END, message, message->frame.size);
        break;
    case MESSAGE_HEARTBEAT:
        write_heartbeat(uplink, message);
        break;
    case MESSAGE_REQUEST:
        refuse(uplink, message);
        break;
    default: /* answers to heartbeats, and what wants no answer */
        break;
    }
}

static void decoded(struct wire *wire, enum codec_event event, const struct message *message,
                    size_t consumed)
{
    struct uplink *uplink = OWNER(wire, struct uplink, wire);

    if (event == CODEC_ERROR) {
        lose(uplink, wire->told_end ? DP_FLAG_UPSTREAM_RESET : DP_FLAG_MALFORMED_RESPONSE);
    } else if (uplink->pool->codec->multiplexes) {
        decoded_frame(uplink, message);
    } else if (!uplink->stream) {
        close_idle(uplink, true); /* an answer that nobody has asked for */
    } else {
        if (event == CODEC_HEAD)
            uplink->leaving |=
                message->last || (!uplink->stream->direct &&
                                  message_binds_connection(message, TEXT("www-authenticate")));
        stream_response(uplink->stream, event, message, consumed);
    }
}

static void ended(struct wire *wire)
{
    lose(OWNER(wire, struct uplink, wire), DP_FLAG_UPSTREAM_RESET);
}

static void failed(struct wire *wire, int error)
{
    lose(OWNER(wire, struct uplink, wire),
         error == ENOMEM ? DP_FLAG_OVERLOAD : DP_FLAG_UPSTREAM_RESET);
}

static void shut_when_sent(struct uplink *uplink)
{
    struct channel *channel = &uplink->channel;

    if (!uplink->shutting || channel->finished || buffer_held(&uplink->wire.out) > 0)
        return;
    channel->finished = true;
    channel->transport->shut(channel);
}

void uplink_shut(struct uplink *uplink)
{
    uplink->leaving = uplink->shutting = true;
    shut_when_sent(uplink);
}

static void sent(struct wire *wire)
{
    struct uplink *uplink = OWNER(wire, struct uplink, wire);

    shut_when_sent(uplink);
    if (uplink->stream)
        stream_uplink_sent(uplink->stream);
    if (uplink->pool->waiting && uplink_is_ready(uplink))
        task_schedule(&uplink->pool->worker->loop.tasks, &uplink->pool->serve);
}

static void spliced(struct wire *wire, size_t bytes)
{
    struct uplink *uplink = OWNER(wire, struct uplink, wire);

    if (uplink->stream)
        stream_response_spliced(uplink->stream, bytes);
}

static const struct wire_ops uplink_ops = {
    .decoded = decoded,
    .ended = ended,
    .failed = failed,
    .sent = sent,
    .spliced = spliced,
};

/* ---- in HTTP/2 ---- */

void uplink_has_room(struct uplink *uplink)
{
    if (uplink->pool->waiting)
        task_schedule(&uplink->pool->worker->loop.tasks, &uplink->pool->serve);
}

void uplink_goes_away(struct uplink *uplink)
{
    struct downstream *owner = owner_of(uplink);

    uplink->leaving = true;
    if (owner)
        downstream_go_away(owner);
}

static size_t take(struct wire *wire, const uint8_t *data, size_t size)
{
    return http2_take(OWNER(wire, struct uplink, wire)->http2, data, size);
}

static void fill(struct wire *wire)
{
    http2_fill(OWNER(wire, struct uplink, wire)->http2);
}

static void http2_sent(struct wire *wire)
{
    struct uplink *uplink = OWNER(wire, struct uplink, wire);
    struct http2 *http2 = uplink->http2;

    if (http2_wants_to_write(http2))
        wire_wants_to_write(wire);
    else if (http2_is_over(http2) && !http2->broken && uplink->busy == 0)
        close_idle(uplink, false);
    else if (http2_is_over(http2))
        lose(uplink, http2->broken ? DP_FLAG_MALFORMED_RESPONSE : DP_FLAG_UPSTREAM_RESET);
    if (!uplink->closed)
        uplink_has_room(uplink);
}

static const struct wire_ops http2_ops = {
    .take = take,
    .fill = fill,
    .ended = ended,
    .failed = failed,
    .sent = http2_sent,
};

static void changed(struct channel *channel, uint32_t events)
{
    wire_changed(&OWNER(channel, struct uplink, channel)->wire, events);
}

void uplink_look(struct uplink *uplink)
{
    uint64_t now_ms = worker_of(uplink)->loop.now_ms;

    if (uplink->connector || !uplink->pool->codec->heartbeat ||
        now_ms - uplink->wire.last_active_ms < HEARTBEAT_MS)
        return;
    if (uplink->heartbeat_ms) {
        wire_fail(&uplink->wire, ETIMEDOUT);
        return;
    }
    uplink->heartbeat_ms = now_ms;
    write_heartbeat(uplink, NULL);
}

/* ---- life ---- */

/* False: it cannot be watched, and is closed. */
static bool connected(struct uplink *uplink, int fd)
{
    struct worker *worker = worker_of(uplink);

    uplink->channel.watch.fd = fd;
    uplink->channel.writable = true;
    uplink->channel.changed = changed;
    wire_open(&uplink->wire, worker, &uplink->channel, uplink->pool->codec,
              uplink->pool->codec->is_http2 ? &http2_ops : &uplink_ops);
    uplink->wire.decoder.response = true;
    if (uplink->pool->codec->is_http2 && !(uplink->http2 = http2_open_uplink(uplink))) {
        uplink_close(uplink, true);
        return false;
    }
    endpoint_succeeded(uplink->pool->endpoint, UINT64_MAX);
    uplink->used_ms = worker->loop.now_ms;
    if (channel_watch(&worker->loop, &uplink->channel) < 0) {
        uplink_close(uplink, true);
        return false;
    }
    link_to(&uplink->pool->ready, uplink);
    return true;
}

static void connector_done(struct connector *connector, int fd)
{
    struct uplink *uplink = connector->owner;
    struct pool *pool = uplink->pool;

    free(uplink->connector);
    uplink->connector = NULL;
    pool->connecting--;
    if (fd < 0) {
        if (connector_is_endpoints_doing(-fd))
            endpoint_failed(pool->endpoint, pool->worker->loop.now_ms);
        uplink_close(uplink, true);
        pool_connect_failed(pool, -fd);
    } else if (connected(uplink, fd)) {
        pool_serve(pool);
    } else {
        pool_connect_failed(pool, ENOMEM);
    }
}

bool uplink_open(struct pool *pool)
{
    struct worker *worker = pool->worker;
    struct uplink *uplink = calloc(1, sizeof *uplink);
    struct connector *connector = calloc(1, sizeof *connector);

    if (!uplink || !connector || !budget_reserve(worker->budget, 1)) {
        free(uplink);
        free(connector);
        return false;
    }
    uplink->pool = pool;
    uplink->connector = connector;
    channel_init(&uplink->channel);
    link_to(&pool->busy, uplink);
    pool_count(pool, 1);
    pool->connecting++;
    *connector = (struct connector){
        .worker = worker,
        .owner = uplink,
        .origin = &pool->origin,
        .choice = {.fixed = true, .upstream = pool->address},
        .done = connector_done,
    };
    connector_start(connector);
    return true;
}

/* The descriptor is closed, or another's. */
static void end(struct uplink *uplink)
{
    struct worker *worker = worker_of(uplink);

    uplink->closed = true;
    if (uplink->owner)
        uplink->owner->own = NULL;
    uplink->owner = NULL;
    http2_close(uplink->http2);
    uplink->http2 = NULL;
    wire_close(&uplink->wire);
    budget_release(worker->budget, 1);
    pool_count(uplink->pool, -1);
    link_to(&worker->streams->ended_uplinks, uplink);
}

void uplink_close(struct uplink *uplink, bool reset)
{
    struct worker *worker = worker_of(uplink);

    if (uplink->closed)
        return;
    assert(!uplink->stream);
    if (uplink->http2 && !reset && !uplink->http2->broken) {
        http2_go_away(uplink->http2);
        wire_flush(&uplink->wire);
    }
    if (uplink->connector) {
        connector_cancel(uplink->connector);
        free(uplink->connector);
        uplink->connector = NULL;
        uplink->pool->connecting--;
    }
    channel_close(&worker->loop, &uplink->channel, reset);
    end(uplink);
}

int uplink_take_fd(struct uplink *uplink)
{
    int fd = uplink->channel.watch.fd;

    loop_unwatch(&worker_of(uplink)->loop, &uplink->channel.watch);
    uplink->channel.watch.fd = -1;
    end(uplink);
    return fd;
}

void uplink_free(struct uplink *uplink)
{
    assert(uplink->closed && !uplink->stream && uplink->busy == 0);
    free(uplink->streams);
    free(uplink);
}
