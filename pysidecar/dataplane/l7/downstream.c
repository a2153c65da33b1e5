#include "l7/downstream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/owner.h"
#include "intercept/listener.h"
#include "l4/sockmap.h"
#include "l4/tunnel.h"
#include "l7/detect.h"
#include "l7/http2.h"
#include "l7/router.h"
#include "l7/sides.h"
#include "l7/streams.h"
#include "l7/uplink.h"
#include "net/budget.h"
#include "net/socket.h"

enum {
    /* Of a client at a time, where requests are multiplexed: */
    MOST_STREAMS = 1024,
    MOST_FRAME_BYTES = 4 * 1024 * 1024, /* one more frame begins below it */
    /* For the client to close after its last answer: without a byte, and in all. */
    LINGER_MS = 2000,
    LONGEST_LINGER_MS = 30000,
    LINGER_READS = 16, /* before others get their turn */
    /* Of HTTP/2 that we have ended: more than a client may have on its way before it knows. */
    SENT_AWAY_BYTES = 2 * 1024 * 1024,
    LOOKS = 4, /* at what a client does not take, within the flush timeout */
    /* While the worker drains: a client that is idle for so long is not about to send anything. */
    QUIET_MS = 1000,
    /* Of a head or frame that goes on coming, beside the header timeout: 256 KiB a second do. */
    SLOWEST_BYTES_A_MS = 256,
    ENHANCE_YOUR_CALM = 11, /* RFC 9113, 7 */
};

static struct worker *worker_of(const struct downstream *downstream)
{
    return downstream->session->worker;
}

static bool multiplexes(const struct downstream *downstream)
{
    return downstream->wire.codec->multiplexes;
}

struct share *downstream_share(struct downstream *downstream)
{
    if (!downstream->share)
        downstream->share = share_of(worker_of(downstream), downstream->session);
    return downstream->share;
}

bool downstream_is_draining(const struct downstream *downstream)
{
    return atomic_load_explicit(&worker_of(downstream)->listeners->draining, memory_order_relaxed);
}

/* ---- its bytes ---- */

static void count_side(struct downstream *downstream, int from, uint64_t total)
{
    struct session *session = downstream->session;
    int64_t more = (int64_t)(total - downstream->counted[from]);

    if (more == 0)
        return;
    downstream->counted[from] = total;
    counter_add(&session->bytes[from], more);
    counter_add(&session->worker->counters.bytes[from], more);
}

static void count_bytes(struct downstream *downstream)
{
    count_side(downstream, DOWNSTREAM, downstream->wire.read);
    count_side(downstream, UPSTREAM, downstream->wire.written);
}

/* ---- its timer ---- */

static void expired(struct timer *timer);

static void set_timer(struct downstream *downstream, uint64_t ms)
{
    struct loop *loop = &worker_of(downstream)->loop;

    if (downstream->tick_ms && downstream->tick_ms < loop->now_ms + ms)
        ms = downstream->tick_ms > loop->now_ms ? downstream->tick_ms - loop->now_ms : 0;
    if (downstream->look_ms && downstream->look_ms < loop->now_ms + ms)
        ms = downstream->look_ms > loop->now_ms ? downstream->look_ms - loop->now_ms : 0;
    loop_set_timer(loop, &downstream->session->timer, ms, expired);
}

static void tick(struct downstream *downstream)
{
    uint64_t now_ms = worker_of(downstream)->loop.now_ms, next;

    if (!downstream->tick_ms || downstream->tick_ms > now_ms)
        return;
    next = sockmap_tick(downstream->session);
    downstream->tick_ms = next == UINT64_MAX ? 0 : next;
}

/* A client of HTTP/2 learns why nothing it has asked for is answered. */
static void end_streams(struct downstream *downstream)
{
    downstream->closing = true;
    while (downstream->streams)
        stream_abandon(downstream->streams, DP_FLAG_DOWNSTREAM_CLOSED);
}

static void give_up(struct downstream *downstream, uint32_t error)
{
    http2_say_goodbye(downstream->http2, error);
    end_streams(downstream);
    downstream_answered(downstream);
}

static void head_expired(struct downstream *downstream)
{
    static const struct message late = {.http_status = 408, .problem = "incomplete request"};

    static const struct message nothing = {0};

    if (downstream->http2) {
        give_up(downstream, ENHANCE_YOUR_CALM);
        return;
    }
    wire_pause(&downstream->wire);
    downstream->closing = true;
    stream_refuse(downstream, &nothing, &late);
}

/* No byte came or went for long. Who still waits for an answer gets one. */
static void idle_expired(struct downstream *downstream)
{
    struct stream *first = downstream->streams;
    bool waits = first && !first->answering && buffer_held(&downstream->wire.out) == 0;

    while (waits && downstream->streams)
        stream_expire(downstream->streams);
    if (downstream->wire.closed)
        return;
    if (waits)
        set_timer(downstream, timeout_of(&worker_of(downstream)->timeouts->idle_ms));
    else
        session_close(downstream->session, DP_END_IDLE_TIMEOUT, 0);
}

/* Looks from now on at what the client does not take, as long as there is something. */
static void watch_unsent(struct downstream *downstream)
{
    struct worker *worker = worker_of(downstream);
    struct timer *timer = &downstream->session->timer;
    uint64_t now_ms = worker->loop.now_ms;
    uint64_t in_ms = timeout_of(&worker->timeouts->flush_ms) / LOOKS + 1;

    if (buffer_held(&downstream->wire.out) == 0)
        downstream->unsent_since_ms = 0;
    else if (!downstream->unsent_since_ms || downstream->wire.written != downstream->sent_then)
        downstream->unsent_since_ms = now_ms;
    downstream->sent_then = downstream->wire.written;
    if (downstream->look_ms || downstream->lingering ||
        (!downstream->unsent_since_ms && !http2_has_unsent(downstream->http2)))
        return;
    downstream->look_ms = now_ms + in_ms;
    if (!timer_is_set(timer) || timer->at_ns > downstream->look_ms * NS_PER_MS)
        set_timer(downstream, in_ms);
}

static void look_at_unsent(struct downstream *downstream)
{
    struct worker *worker = worker_of(downstream);
    uint64_t now_ms = worker->loop.now_ms, since_ms = downstream->unsent_since_ms;

    if (!downstream->look_ms || downstream->look_ms > now_ms)
        return;
    downstream->look_ms = 0;
    if (since_ms && since_ms + timeout_of(&worker->timeouts->flush_ms) <= now_ms) {
        session_close(downstream->session, DP_END_IDLE_TIMEOUT, 0);
        return;
    }
    http2_drop_not_taken(downstream->http2);
    downstream_answered(downstream);
    watch_unsent(downstream);
}

/* An idle connection, a head that does not come to its end, or nothing but a tick. */
static void expired(struct timer *timer)
{
    struct session *session = OWNER(timer, struct session, timer);
    struct downstream *downstream = session->served;
    const struct timeouts *timeouts = session->worker->timeouts;
    uint64_t now_ms = session->worker->loop.now_ms;
    uint64_t idle_at = downstream->wire.last_active_ms + timeout_of(&timeouts->idle_ms);
    uint64_t head_at = downstream->head_since_ms + timeout_of(&timeouts->header_ms) +
                       buffer_held(&downstream->wire.in) / SLOWEST_BYTES_A_MS;

    if (downstream->lingering) {
        session_close(session, DP_END_EOF, 0);
        return;
    }
    if (idle_at <= now_ms) {
        idle_expired(downstream);
        return;
    }
    if (downstream->head_since_ms && head_at <= now_ms) {
        downstream->head_since_ms = 0;
        set_timer(downstream, idle_at - now_ms);
        head_expired(downstream);
        return;
    }
    tick(downstream);
    look_at_unsent(downstream);
    if (downstream->wire.closed)
        return;
    if (downstream->head_since_ms && head_at < idle_at)
        idle_at = head_at;
    set_timer(downstream, idle_at - now_ms);
    if (downstream_is_draining(downstream))
        downstream_drain(downstream);
}

/* Notes whether a head (or frame) has begun and is not complete. */
static void note_head(struct downstream *downstream)
{
    struct worker *worker = worker_of(downstream);
    bool begun = buffer_held(&downstream->wire.in) > 0 && !downstream->wire.paused;

    if (downstream->http2)
        begun = buffer_held(&downstream->http2->head) > 0;

    if (!begun || (!multiplexes(downstream) && downstream->streams)) {
        downstream->head_since_ms = 0;
    } else if (!downstream->head_since_ms) {
        downstream->head_since_ms = worker->loop.now_ms;
        set_timer(downstream, timeout_of(&worker->timeouts->header_ms));
    }
}

/* ---- its end ---- */

/* False: it has sent more than somebody who means well. */
static bool linger_on(struct downstream *downstream, size_t dropped)
{
    uint64_t now_ms = worker_of(downstream)->loop.now_ms, until_ms = downstream->linger_until_ms;
    uint64_t left_ms = until_ms > now_ms ? until_ms - now_ms : 0;

    if (dropped > downstream->linger_left)
        return false;
    downstream->linger_left -= dropped;
    set_timer(downstream, left_ms < LINGER_MS ? left_ms : LINGER_MS);
    return true;
}

/* Drops what still comes, so that the last answer is not lost by a reset. */
static void linger(struct downstream *downstream)
{
    struct session *session = downstream->session;
    struct channel *channel = &session->downstream;
    ssize_t count = 1;

    for (int i = 0; i < LINGER_READS && count > 0; i++) {
        count = channel_read(channel, session->worker->scratch, SCRATCH_SIZE);
        if (count > 0 && !linger_on(downstream, (size_t)count)) {
            session_close(session, DP_END_EOF, 0);
            return;
        }
    }
    if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR))
        session_close(session, DP_END_EOF, 0);
    else if (count > 0)
        task_schedule(&session->worker->loop.tasks, &downstream->task);
}

static void lingering_changed(struct channel *channel, uint32_t events)
{
    (void)events;
    linger(OWNER(channel, struct session, downstream)->served);
}

/* For what it has done, as a flood. */
static bool was_sent_away(const struct downstream *downstream)
{
    return downstream->http2 && downstream->http2->broken;
}

/* Everything is sent: tells the client that there is no more. */
static void begin_to_linger(struct downstream *downstream)
{
    struct session *session = downstream->session;

    downstream->lingering = true;
    downstream->tick_ms = downstream->look_ms = 0;
    if (session->downstream.transport->shut(&session->downstream) < 0) {
        session_close(session, DP_END_EOF, 0);
        return;
    }
    session->downstream.changed = lingering_changed;
    downstream->linger_until_ms = session->worker->loop.now_ms + LONGEST_LINGER_MS;
    downstream->linger_left = UINT64_MAX;
    if (was_sent_away(downstream)) {
        downstream->linger_until_ms = session->worker->loop.now_ms + LINGER_MS;
        downstream->linger_left = SENT_AWAY_BYTES;
    }
    (void)linger_on(downstream, 0);
    linger(downstream);
}

/* Whether answers of HTTP/2 still have to be sent. */
static bool has_answers(const struct downstream *downstream)
{
    const struct http2 *http2 = downstream->http2;

    return http2 && !http2_is_over(http2) &&
           (http2->stream_count > 0 || http2_wants_to_write(http2));
}

static bool is_done(const struct downstream *downstream)
{
    return (downstream->closing || downstream->wire.told_end) && !downstream->streams &&
           !has_answers(downstream) && !downstream->lingering && !downstream->upgrading;
}

/* ---- going on as a tunnel ---- */

static void release(struct downstream *downstream)
{
    struct streams *streams = worker_of(downstream)->streams;

    count_bytes(downstream);
    if (downstream->own)
        uplink_close(downstream->own, false);
    if (downstream->pool)
        pool_desert(downstream->pool, false);
    task_cancel(&streams->worker->loop.tasks, &downstream->task);
    http2_close(downstream->http2);
    downstream->http2 = NULL;
    wire_close(&downstream->wire);
    choice_release(&downstream->choice);
    *downstream->previous = downstream->next;
    if (downstream->next)
        downstream->next->previous = downstream->previous;
    downstream->next = streams->ended_downstreams;
    streams->ended_downstreams = downstream;
}

/* What one has still to send, and what the other has read already. */
static bool hold(struct tunnel *tunnel, int from, const struct buffer *unsent,
                 const struct buffer *unread)
{
    uint32_t size = buffer_held(unsent), more = buffer_held(unread);
    uint8_t *to;

    if (size + more == 0)
        return true;
    to = flow_hold(tunnel, from, size + more);
    if (!to)
        return false;
    if (size)
        memcpy(to, unsent->data + unsent->start, size);
    if (more)
        memcpy(to + size, unread->data + unread->start, more);
    return true;
}

static void become_tunnel(struct downstream *downstream)
{
    struct session *session = downstream->session;
    struct stream *stream = downstream->streams;
    struct wire *down = &downstream->wire, *up = &stream->uplink->wire;
    struct tunnel *tunnel = tunnel_create(session);
    struct mosnhook_address upstream = stream->uplink->pool->address;
    int fd;

    if (!tunnel || !hold(tunnel, DOWNSTREAM, &up->out, &down->in) ||
        !hold(tunnel, UPSTREAM, &down->out, &up->in)) {
        if (tunnel)
            tunnel_free(tunnel);
        downstream_cut(downstream, DP_END_NO_RESOURCES);
        return;
    }
    timer_cancel(&session->worker->loop.timers, &session->timer);
    fd = uplink_take_fd(stream->uplink);
    stream_upgraded(stream);
    session->upstream = upstream;
    release(downstream);
    tunnel_adopt(tunnel, fd);
}

void downstream_upgrade(struct downstream *downstream, struct stream *stream)
{
    wire_pause(&downstream->wire);
    wire_pause(&stream->uplink->wire);
    downstream->upgrading = true;
    task_schedule(&worker_of(downstream)->loop.tasks, &downstream->task);
}

/* At a listener of ours its service takes also what is no request. False: there is none. */
static bool find_relay(struct session *session, struct choice *choice)
{
    const struct dp_listener *listener = session->origin.listener;
    struct entrance entrance;

    if (listener->transport != DP_TRANSPORT_LISTENER)
        return true;
    entrance = router_entrance(session->worker, listener->number);
    if (!entrance.service || !entrance.service->cluster)
        return false;
    choice_of_service(choice, session->worker, entrance.service);
    return true;
}

static void relay(struct downstream *downstream)
{
    struct session *session = downstream->session;
    struct choice choice = downstream->choice;

    if (!find_relay(session, &choice)) {
        session_close(session, DP_END_UNDETECTED, 0);
        return;
    }
    timer_cancel(&session->worker->loop.timers, &session->timer);
    downstream->choice.cluster = NULL;
    downstream->choice.endpoint = NULL;
    release(downstream);
    session->worker->handler->decided(session, DP_RELAY);
    tunnel_start(session, &choice);
}

/* Whether the client has sent something that was not read. */
static bool has_more(const struct downstream *downstream)
{
    const struct channel *channel = downstream->wire.channel;
    uint8_t byte;

    if (channel->transport != &transport_raw)
        return channel->readable;
    return recv(channel->watch.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

/* A request that came since then is still answered. */
static bool goes_on(struct downstream *downstream)
{
    if (!downstream->between || !has_more(downstream))
        return false;
    downstream->closing = downstream->between = false;
    socket_set_cork(downstream->wire.channel->watch.fd, false);
    downstream_update(downstream);
    return true;
}

static void task_run(struct task *task)
{
    struct downstream *downstream = OWNER(task, struct downstream, task);

    if (downstream->lingering)
        linger(downstream);
    else if (downstream->upgrading)
        become_tunnel(downstream);
    else if (is_done(downstream) && buffer_held(&downstream->wire.out) == 0 && !goes_on(downstream))
        begin_to_linger(downstream);
}

/* ---- its streams ---- */

static bool may_read(struct downstream *downstream)
{
    struct stream *stream = downstream->streams;

    if (downstream->http2) /* also for the rest of what is under way */
        return !wire_is_behind(&downstream->wire);
    if (downstream->closing || downstream->upgrading)
        return false;
    if (multiplexes(downstream))
        return downstream->stream_count < MOST_STREAMS &&
               downstream->frame_bytes < MOST_FRAME_BYTES && !wire_is_behind(&downstream->wire);
    if (!stream)
        return !wire_is_behind(&downstream->wire);
    /* A request that has no body is complete at once; with one, it first needs where to go. */
    return !stream->complete && stream->uplink && !stream->up->is_behind(stream);
}

void downstream_update(struct downstream *downstream)
{
    struct wire *wire = &downstream->wire;

    if (wire->closed)
        return;
    if (!may_read(downstream))
        wire_pause(wire);
    else if (wire->paused)
        wire_resume(wire);
}

/* Whether no request is under way. Where they are multiplexed, a client may always be about to send
 * one. */
static bool is_idle(const struct downstream *downstream)
{
    const struct wire *wire = &downstream->wire;

    return !downstream->streams && !downstream->upgrading && buffer_held(&wire->in) == 0 &&
           (multiplexes(downstream) || !wire->channel->readable);
}

void downstream_go_away(struct downstream *downstream)
{
    http2_go_away(downstream->http2);
    downstream->closing = true;
}

/* In two steps, so that what the client sends meanwhile is still answered (RFC 9113, 6.8). */
static void drain_http2(struct downstream *downstream)
{
    struct http2 *http2 = downstream->http2;
    uint64_t now_ms = worker_of(downstream)->loop.now_ms;

    if (!http2->noticed) {
        http2_notice(http2);
        downstream->final_ms = now_ms + QUIET_MS;
    }
    if (now_ms < downstream->final_ms) {
        set_timer(downstream, downstream->final_ms - now_ms);
        return;
    }
    downstream_go_away(downstream);
}

/* Frames have no word for a connection that ends. So one that is never quiet ends in the first
 * moment without a request, which is that of its last answer: who waited for that has sent no other
 * one. */
static bool is_between_frames(const struct downstream *downstream)
{
    return multiplexes(downstream) && downstream->final_ms <= worker_of(downstream)->loop.now_ms &&
           !has_more(downstream);
}

static void end_without_a_word(struct downstream *downstream)
{
    downstream->closing = true;
    downstream->between = multiplexes(downstream);
    if (downstream->between) /* the client has the last answer and the end in one segment */
        socket_set_cork(downstream->wire.channel->watch.fd, true);
}

/* Not at once: the next request may be on its way already, and would be lost. */
static void end_when_quiet(struct downstream *downstream)
{
    uint64_t now_ms = worker_of(downstream)->loop.now_ms;
    uint64_t quiet_at_ms = downstream->wire.last_active_ms + QUIET_MS;

    if (downstream->closing)
        return;
    if (downstream->http2) {
        drain_http2(downstream);
        return;
    }
    if (!downstream->final_ms)
        downstream->final_ms = now_ms + QUIET_MS;
    if (!is_idle(downstream))
        return;
    if (quiet_at_ms <= now_ms || is_between_frames(downstream))
        end_without_a_word(downstream);
    else
        set_timer(downstream, quiet_at_ms - now_ms);
}

void downstream_answered(struct downstream *downstream)
{
    if (downstream->wire.closed)
        return;
    if (downstream_is_draining(downstream))
        end_when_quiet(downstream);
    downstream_update(downstream);
    if (is_done(downstream))
        task_schedule(&worker_of(downstream)->loop.tasks, &downstream->task);
}

void downstream_deserted(struct downstream *downstream)
{
    if (downstream->wire.closed)
        return;
    if (downstream->http2) /* what is sent again is still answered */
        http2_go_away(downstream->http2);
    else if (downstream->streams)
        return;
    downstream->closing = true;
    downstream_answered(downstream);
}

/* As recv(): what comes behind what was read, which is looked for without reading. An end, or a
 * reset, may have come together with a request, and is not announced again. */
static ssize_t look_ahead(const struct downstream *downstream)
{
    const struct wire *wire = &downstream->wire;
    const struct channel *channel = wire->channel;
    uint8_t byte;

    if (buffer_held(&wire->in) > 0)
        return 1;
    if (channel->ended)
        return 0;
    if (!channel->hung_up || channel->transport != &transport_raw) {
        errno = EAGAIN;
        return -1;
    }
    return recv(channel->watch.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
}

void downstream_pass_end(struct downstream *downstream)
{
    const struct stream *stream = downstream->streams;
    struct uplink *own = downstream->own;
    ssize_t ahead;

    if (!stream || !stream->complete || multiplexes(downstream))
        return;
    ahead = look_ahead(downstream);
    if (ahead < 0 && errno != EAGAIN && errno != EINTR)
        wire_fail(&downstream->wire, errno);
    else if (ahead == 0 && own && own->stream == stream && !own->shutting)
        uplink_shut(own);
}

void downstream_cut(struct downstream *downstream, enum dp_end end)
{
    if (!downstream->wire.closed)
        session_close(downstream->session, end, end == DP_END_NO_RESOURCES ? ENOMEM : ECONNRESET);
}

void downstream_drain(struct downstream *downstream)
{
    if (downstream->wire.worker && !downstream->lingering) /* else it is not served yet, or ends */
        downstream_answered(downstream);
}

/* ---- the short cut to the application ---- */

static void takes_more(struct session *session)
{
    struct downstream *downstream = session->served;

    wire_writable(&downstream->wire);
}

/* Not within a body, which may be on its way through a pipe. */
static void accelerate(struct downstream *downstream)
{
    struct session *session = downstream->session;
    enum sockmap_state state;

    if (is_done(downstream) || (downstream->streams && !multiplexes(downstream)))
        return;
    state = sockmap_try(session, downstream->requests, takes_more);
    downstream->unaccelerated = state == SOCKMAP_NOT_YET;
    if (state != SOCKMAP_ON)
        return;
    downstream->tick_ms = session->worker->loop.now_ms + SOCKMAP_TICK_MS;
    set_timer(downstream, SOCKMAP_TICK_MS);
}

/* ---- what it brings ---- */

static void answer_heartbeat(struct downstream *downstream, const struct message *message)
{
    struct wire *wire = &downstream->wire;
    size_t room = message->frame.size + ENCODING_ROOM;
    uint8_t *to = wire_room(wire, room);

    if (to)
        wire_wrote(wire, wire->codec->answer_heartbeat(message, to, room));
}

static void decoded_head(struct downstream *downstream, const struct message *message,
                         size_t consumed)
{
    switch (message->kind) {
    case MESSAGE_REQUEST:
    case MESSAGE_ONEWAY:
        downstream->requests++;
        stream_begin(downstream, message, consumed);
        break;
    case MESSAGE_HEARTBEAT:
        answer_heartbeat(downstream, message);
        break;
    default: /* answers to what we did not ask */
        break;
    }
    downstream_update(downstream);
}

/* Nothing can be understood any more. */
static void refuse(struct downstream *downstream, const struct message *problem)
{
    static const struct message nothing = {0};

    downstream->closing = true;
    stream_refuse(downstream, &nothing, problem);
}

static void decoded(struct wire *wire, enum codec_event event, const struct message *message,
                    size_t consumed)
{
    struct downstream *downstream = OWNER(wire, struct downstream, wire);
    struct stream *stream = downstream->streams;

    downstream->head_since_ms = 0;
    if (event == CODEC_HEAD)
        decoded_head(downstream, message, consumed);
    else if (event == CODEC_ERROR && stream && !multiplexes(downstream))
        stream_request_malformed(stream, message);
    else if (event == CODEC_ERROR)
        refuse(downstream, message);
    else if (stream && event == CODEC_DATA)
        stream_request_data(stream, message, consumed);
    else if (stream)
        stream_request_end(stream, message, consumed);
}

static void ended(struct wire *wire)
{
    downstream_answered(OWNER(wire, struct downstream, wire));
}

static void failed(struct wire *wire, int error)
{
    struct downstream *downstream = OWNER(wire, struct downstream, wire);

    session_close(downstream->session,
                  error == ENOMEM ? DP_END_NO_RESOURCES : DP_END_DOWNSTREAM_RESET, error);
}

static void sent(struct wire *wire)
{
    struct downstream *downstream = OWNER(wire, struct downstream, wire);

    count_bytes(downstream);
    if (downstream->streams && !multiplexes(downstream) && !downstream->upgrading)
        stream_downstream_sent(downstream->streams);
    downstream_update(downstream);
    note_head(downstream);
    if (downstream->unaccelerated)
        accelerate(downstream);
    downstream_pass_end(downstream);
    if (is_done(downstream) && buffer_held(&wire->out) == 0)
        task_schedule(&wire->worker->loop.tasks, &downstream->task);
}

static void spliced(struct wire *wire, size_t bytes)
{
    struct downstream *downstream = OWNER(wire, struct downstream, wire);

    if (downstream->streams)
        downstream->streams->record.bytes_sent += bytes;
}

static const struct wire_ops downstream_ops = {
    .decoded = decoded,
    .ended = ended,
    .failed = failed,
    .sent = sent,
    .spliced = spliced,
};

/* ---- what it brings in HTTP/2 ---- */

static size_t take(struct wire *wire, const uint8_t *data, size_t size)
{
    return http2_take(OWNER(wire, struct downstream, wire)->http2, data, size);
}

static void fill(struct wire *wire)
{
    struct downstream *downstream = OWNER(wire, struct downstream, wire);

    http2_fill(downstream->http2);
    if (downstream->http2) /* also where nothing can be sent, of which nobody tells */
        watch_unsent(downstream);
}

static void http2_sent(struct wire *wire)
{
    struct downstream *downstream = OWNER(wire, struct downstream, wire);
    struct http2 *http2 = downstream->http2;

    count_bytes(downstream);
    watch_unsent(downstream);
    if (http2_is_over(http2))
        end_streams(downstream);
    downstream_update(downstream);
    note_head(downstream);
    if (downstream->unaccelerated)
        accelerate(downstream);
    if (http2_wants_to_write(http2))
        wire_wants_to_write(wire);
    if (is_done(downstream) && buffer_held(&wire->out) == 0)
        task_schedule(&wire->worker->loop.tasks, &downstream->task);
}

/* There is no half of a connection: a client that has ended takes no answers (RFC 9113, 5.4.3). */
static void http2_ended(struct wire *wire)
{
    struct downstream *downstream = OWNER(wire, struct downstream, wire);

    end_streams(downstream);
    downstream_answered(downstream);
}

static const struct wire_ops http2_ops = {
    .take = take,
    .fill = fill,
    .ended = http2_ended,
    .failed = failed,
    .sent = http2_sent,
};

static void changed(struct channel *channel, uint32_t events)
{
    struct downstream *downstream = OWNER(channel, struct session, downstream)->served;

    wire_changed(&downstream->wire, events);
}

static void begin(struct downstream *downstream)
{
    struct session *session = downstream->session;
    struct worker *worker = session->worker;

    const struct codec *codec = codec_of(downstream->protocol);

    wire_open(&downstream->wire, worker, &session->downstream, codec,
              codec->is_http2 ? &http2_ops : &downstream_ops);
    downstream->side = downstream_side_of(codec);
    if (codec->is_http2 && !(downstream->http2 = http2_open_downstream(downstream))) {
        session_close(session, DP_END_NO_RESOURCES, ENOMEM);
        return;
    }
    session->downstream.changed = changed;
    downstream->unaccelerated = sockmap_is_for(session);
    set_timer(downstream, timeout_of(&worker->timeouts->idle_ms));
    wire_changed(&downstream->wire, 0);
}

/* ---- which protocol it is ---- */

static void undetected(struct downstream *downstream)
{
    if (downstream->undetected == DP_RELAY)
        relay(downstream);
    else
        session_close(downstream->session, DP_END_UNDETECTED, 0);
}

static void detect_expired(struct timer *timer)
{
    struct session *session = OWNER(timer, struct session, timer);

    trace(session->worker, session->id, expired, DP_TIMER_DETECT, 0);
    undetected(session->served);
}

/* Looks at the bytes without taking them: whoever serves the session reads them. */
static void detect(struct downstream *downstream)
{
    struct session *session = downstream->session;
    struct channel *channel = &session->downstream;
    uint8_t bytes[DETECT_BYTES];
    ssize_t count = recv(channel->watch.fd, bytes, sizeof bytes, MSG_PEEK);
    enum detection found = DETECT_MORE;

    if (count < 0 && errno != EAGAIN && errno != EINTR) {
        session_close(session, DP_END_DOWNSTREAM_RESET, errno);
        return;
    }
    if (count > 0)
        found = detect_protocol(bytes, (size_t)count, &downstream->protocol);
    if (found == DETECT_YES)
        begin(downstream);
    else if (found == DETECT_NO || count == 0 || channel->hung_up)
        undetected(downstream);
}

static void detecting_changed(struct channel *channel, uint32_t events)
{
    struct session *session = OWNER(channel, struct session, downstream);

    if (events & EPOLLERR)
        session_close(session, DP_END_DOWNSTREAM_RESET, ECONNRESET);
    else
        detect(session->served);
}

/* ---- life ---- */

static void completed(struct session *session)
{
    struct downstream *downstream = session->served;

    session_enter(session, SESSION_SERVED);
    if (downstream->protocol != DP_AUTO) {
        begin(downstream);
        return;
    }
    session->downstream.changed = detecting_changed;
    loop_set_timer(&session->worker->loop, &session->timer, downstream->detect_ms, detect_expired);
    detect(downstream);
}

static void close_session(struct session *session, bool reset)
{
    struct downstream *downstream = session->served;
    enum dp_flag why =
        session->end == DP_END_DRAIN_LIMIT ? DP_FLAG_DRAIN_LIMIT : DP_FLAG_DOWNSTREAM_CLOSED;

    wire_close(&downstream->wire);
    while (downstream->streams)
        stream_abandon(downstream->streams, why);
    if (downstream->own)
        uplink_close(downstream->own, reset);
    if (downstream->pool)
        pool_desert(downstream->pool, reset);
    session->served = NULL;
    release(downstream);
}

static const struct serving requests_serving = {
    .completed = completed,
    .close = close_session,
};

void downstream_start(struct session *session, const struct choice *choice,
                      enum dp_protocol protocol, uint32_t detect_ms, uint32_t undetected)
{
    struct streams *streams = session->worker->streams;
    struct downstream *downstream = calloc(1, sizeof *downstream);

    if (!downstream) {
        struct choice unused = *choice;

        choice_release(&unused);
        session_refuse(session, DP_END_NO_RESOURCES, ENOMEM);
        return;
    }
    downstream->session = session;
    downstream->choice = *choice;
    downstream->protocol = protocol;
    downstream->detect_ms = detect_ms;
    downstream->undetected = undetected;
    downstream->task.run = task_run;
    downstream->next = streams->downstreams;
    downstream->previous = &streams->downstreams;
    if (downstream->next)
        downstream->next->previous = &downstream->next;
    streams->downstreams = downstream;
    session->served = downstream;
    session->serving = &requests_serving;
    session->worker->handler->decided(session, DP_REQUESTS);
    session->ops->complete(session);
}
