#include "l7/stream.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/owner.h"
#include "l7/grpc.h"
#include "l7/message.h"
#include "l7/outcome.h"
#include "l7/pool.h"
#include "l7/stream_parts.h"
#include "l7/uplink.h"

enum { SPARE_STREAMS = 256 };

/* ---- life ---- */

static struct stream *take_stream(struct streams *streams)
{
    struct stream *stream = streams->spare_streams;

    if (!stream)
        return calloc(1, sizeof *stream);
    streams->spare_streams = stream->next;
    streams->spare_count--;
    memset(stream, 0, sizeof *stream);
    return stream;
}

void stream_free(struct streams *streams, struct stream *stream)
{
    assert(stream->ended && !stream->uplink && !stream->waiting);
    if (streams->spare_count >= SPARE_STREAMS) {
        free(stream);
        return;
    }
    stream->next = streams->spare_streams;
    streams->spare_streams = stream;
    streams->spare_count++;
}

static void link_stream(struct downstream *downstream, struct stream *stream)
{
    stream->next = downstream->streams;
    stream->previous = &downstream->streams;
    if (stream->next)
        stream->next->previous = &stream->next;
    downstream->streams = stream;
    downstream->stream_count++;
}

/* A twin is in no list. */
static void unlink_stream(struct stream *stream)
{
    if (!stream->previous)
        return;
    *stream->previous = stream->next;
    if (stream->next)
        stream->next->previous = stream->previous;
    stream->downstream->stream_count--;
    stream->downstream->frame_bytes -= stream->counted_bytes;
}

void stream_copy_text(char *to, size_t size, struct text from)
{
    memcpy(to, from.at ? from.at : "", from.size < size ? from.size : size);
}

/* What a request is measured by: when turns began, since many requests are in one. */
static uint64_t elapsed_ns(const struct stream *stream)
{
    uint64_t ns = stream_worker(stream)->loop.now_ns - stream->began_ns;

    return ns ? ns : 1; /* in the same turn; 0 would be never */
}

/* CLOCK_REALTIME at the beginning of this turn, which is asked for once. */
static uint64_t real_ns(struct worker *worker)
{
    struct streams *streams = worker->streams;

    if (streams->real_of_ns != worker->loop.now_ns) {
        streams->real_of_ns = worker->loop.now_ns;
        streams->real_ns = clock_ns(CLOCK_REALTIME);
    }
    return streams->real_ns;
}

/* Of gRPC the service and the method, in place of HTTP's. */
static void name_call(struct stream *stream, const struct message *request)
{
    struct text service, method;

    if (!request->facts.grpc || !grpc_split_path(request->path, &service, &method))
        return;
    memset(stream->record.service, 0, sizeof stream->record.service);
    memset(stream->record.method, 0, sizeof stream->record.method);
    stream_copy_text(stream->record.service, sizeof stream->record.service, service);
    stream_copy_text(stream->record.method, sizeof stream->record.method, method);
}

struct stream *stream_create(struct downstream *downstream, const struct message *request)
{
    struct session *session = downstream->session;
    struct stream *stream = take_stream(session->worker->streams);

    if (!stream)
        return NULL;
    stream->downstream = downstream;
    stream->down = downstream->side;
    stream->id = request->id;
    stream->facts = request->facts;
    stream->idempotent = request->idempotent;
    stream->oneway = request->kind == MESSAGE_ONEWAY;
    stream->timer.index = TIMER_OFF;
    stream->began_ns = session->worker->loop.now_ns;
    stream->record.began_ns = real_ns(session->worker);
    stream->record.connection = session->id;
    stream->record.source = session->origin.source;
    stream->record.protocol =
        (uint8_t)(request->protocol ? request->protocol : downstream->protocol);
    stream->record.direction = (uint8_t)session->origin.listener->direction;
    stream_copy_text(stream->record.service, sizeof stream->record.service, request->service);
    stream_copy_text(stream->record.method, sizeof stream->record.method, request->method);
    stream_copy_text(stream->record.path, sizeof stream->record.path,
                     request->path.size ? request->path : request->service);
    name_call(stream, request);
    link_stream(downstream, stream);
    if (stream->down->begin)
        stream->down->begin(stream, request);
    return stream;
}

struct stream *stream_create_shadow(struct downstream *downstream, enum shadow kind)
{
    static const struct message nothing = {0};
    struct stream *stream = stream_create(downstream, &nothing);

    if (!stream)
        return NULL;
    stream->shadow = kind;
    if (kind != SHADOW_TWIN)
        return stream;
    unlink_stream(stream);
    stream->previous = NULL;
    return stream;
}

/* ---- its place upstream ---- */

static void count_active(const struct stream *stream, int change)
{
    struct endpoint *endpoint = stream->pool->endpoint;
    struct tally *tally;

    if (!endpoint)
        return;
    atomic_fetch_add_explicit(&endpoint->active, (unsigned)change, memory_order_relaxed);
    tally = endpoint_tally(endpoint, stream_worker(stream)->index);
    if (tally)
        counter_add(&tally->active, change);
}

static void count_service(const struct stream *stream, int change)
{
    if (stream->service && stream->shadow != SHADOW_TWIN)
        counter_add(&stream->service->standing->tallies[stream_worker(stream)->index].active,
                    change);
}

void stream_set_service(struct stream *stream, struct service *service)
{
    stream->service = service;
    shared_reference(&service->shared);
    memset(stream->record.service, 0, sizeof stream->record.service);
    stream_copy_text(stream->record.service, sizeof stream->record.service, service->name);
    count_service(stream, 1);
}

void stream_enter_pool(struct stream *stream, struct pool *pool)
{
    stream->pool = pool;
    count_active(stream, 1);
}

void stream_leave_pool(struct stream *stream, bool complete)
{
    if (!stream->pool)
        return;
    pool_leave(stream->pool, stream);
    if (stream->uplink) {
        wire_stop_splicing(&stream->downstream->wire);
        uplink_leave(stream->uplink, stream, complete);
    }
    count_active(stream, -1);
    stream->pool = NULL;
}

/* ---- its end ---- */

static void report_span(struct stream *stream)
{
    struct session *session = stream->downstream->session;

    if (!stream->span)
        return;
    stream->span->data.request = stream->record;
    session->worker->handler->span_ended(session, &stream->span->data);
    tracer_free(&session->worker->streams->tracer, stream->span);
    stream->span = NULL;
}

static void report(struct stream *stream)
{
    struct session *session = stream->downstream->session;
    const struct session_handler *handler = session->worker->handler;
    struct standing *standing = stream->service ? stream->service->standing : NULL;
    struct endpoint *endpoint = stream->tried_count ? stream->tried[stream->tried_count - 1] : NULL;
    struct dp_request *record = &stream->record;

    record->duration_ns = elapsed_ns(stream);
    if (stream->shadow == SHADOW_TWIN)
        stream->first->record.attempts += record->attempts;
    else if (stream->shadow == SHADOW_COPY)
        handler->copy_ended(session->worker, record, standing, endpoint);
    else
        handler->request_ended(session, record, standing, endpoint);
    report_span(stream);
}

/* What there is of it beside itself. */
static void leave_shadows(struct stream *stream)
{
    struct streams *streams = stream_worker(stream)->streams;

    shadow_drop_twin(stream);
    shadow_forget_mirror(stream);
    if (stream->first)
        stream->first->twin = NULL;
    stream->first = NULL;
    if (stream->shadow == SHADOW_COPY)
        streams->copy_count--;
}

void stream_end(struct stream *stream, bool complete)
{
    struct worker *worker = stream_worker(stream);
    struct streams *streams = worker->streams;

    stream->ended = true;
    stream_leave_wanting(stream);
    timer_cancel(&worker->loop.timers, &stream->timer);
    if (stream->timed)
        timers_release(&worker->loop.timers, 1);
    stream_leave_pool(stream, complete);
    if (stream->down->leave)
        stream->down->leave(stream);
    report(stream);
    leave_shadows(stream);
    stream_leave_load(stream);
    count_service(stream, -1);
    if (stream->service)
        shared_release(&stream->service->shared);
    buffer_release(&streams->blocks, &stream->request);
    unlink_stream(stream);
    stream->next = streams->ended_streams;
    streams->ended_streams = stream;
}

static uint8_t class_of(const struct stream *stream, uint32_t status, bool succeeded)
{
    if (stream->facts.grpc)
        return grpc_class_of((uint8_t)status);
    if (protocol_family(stream->downstream->protocol) == DP_HTTP1)
        return (uint8_t)(status / 100 < DP_STATUS_CLASSES ? status / 100 : 0);
    return succeeded ? 2 : 5;
}

void stream_note_first_byte(struct stream *stream)
{
    if (stream->record.first_byte_ns == 0)
        stream->record.first_byte_ns = elapsed_ns(stream);
}

void stream_note_status(struct stream *stream, uint32_t status, bool succeeded)
{
    struct dp_request *record = &stream->record;

    record->status = status;
    record->answered = 1;
    record->status_class = class_of(stream, status, succeeded);
    stream_note_first_byte(stream);
}

void stream_note_grpc(struct stream *stream, uint8_t status)
{
    stream_note_status(stream, status, status == 0);
}

/* Answers it ourselves. False when out of memory. */
static bool refuse(struct stream *stream, enum dp_flag why, const struct message *problem)
{
    uint32_t status = 0;
    struct rejection rejection = {
        .flag = why,
        .http_status = problem ? problem->http_status : 0,
        .own_status =
            problem && problem->http_status <= UINT8_MAX ? (uint8_t)problem->http_status : 0,
        .status = &status,
    };

    if (problem && problem->problem)
        rejection.reason = (struct text){problem->problem, (uint32_t)strlen(problem->problem)};
    if (!stream->down->refuse(stream, &rejection))
        return false;
    stream_note_status(stream, status, false);
    return true;
}

/* Whether its connection ends as the upstream's did, in order: by the length of the answer, the
 * client sees that something is missing, and has what there is. */
static bool ends_alike(const struct stream *stream, enum dp_flag why)
{
    return why == DP_FLAG_UPSTREAM_RESET && stream->direct && stream->answering &&
           !stream->facts.http10 && stream->uplink && stream->uplink->wire.told_end;
}

void stream_fail(struct stream *stream, enum dp_flag why, const struct message *problem)
{
    struct downstream *downstream = stream->downstream;
    enum dp_end cut = DP_END_NONE;

    if (stream->answered) { /* only the rest of the request fails: the client is told to stop */
        stream_end(stream, false);
        downstream_answered(downstream);
        return;
    }
    outcome_note_failure(stream, why);
    if (stream->shadow == SHADOW_TWIN) {
        shadow_twin_failed(stream);
        return;
    }
    stream_set_flag(stream, why);
    if (ends_alike(stream, why))
        downstream->closing = true;
    else if (stream->answering && !stream->down->take_back(stream))
        cut = stream->down->cut(stream, why == DP_FLAG_TIMEOUT ? DP_END_UPSTREAM_TIMEOUT
                                                               : DP_END_UPSTREAM_RESET);
    else if (!stream->oneway && !refuse(stream, why, problem))
        cut = DP_END_NO_RESOURCES;
    stream_end(stream, false);
    if (cut)
        downstream_cut(downstream, cut);
    else
        downstream_answered(downstream);
}

void stream_abandon(struct stream *stream, enum dp_flag why)
{
    stream_set_flag(stream, why);
    stream_end(stream, false);
}

/* ---- its time ---- */

/* Whether the client does not take what there is of the answer. */
static bool waits_for_client(const struct stream *stream)
{
    return stream->answering &&
           (stream->down->has_unsent(stream) || (stream->uplink && stream->up->is_held(stream)));
}

/* When the endpoint has been silent for too long. A request that is not complete waits for the
 * client. */
static uint64_t silent_at_ms(const struct stream *stream)
{
    uint32_t silent_ms = stream->service ? stream->service->silent_ms : 0;
    uint64_t since_ms = stream->complete_ms;

    if (silent_ms == 0 || stream->resume_at_ms > 0 || stream->awaits_twin)
        return UINT64_MAX;
    if (!stream->complete || waits_for_client(stream))
        return stream_worker(stream)->loop.now_ms + silent_ms;
    if (stream->uplink && stream->up->active_ms(stream) > since_ms)
        since_ms = stream->up->active_ms(stream);
    return since_ms + silent_ms;
}

void stream_expire(struct stream *stream)
{
    trace(stream_worker(stream), stream->record.connection, expired, DP_TIMER_ANSWER, 0);
    stream_fail(stream, DP_FLAG_TIMEOUT, NULL);
}

static void answer_expired(struct timer *timer);

void stream_set_timer(struct stream *stream)
{
    struct loop *loop = &stream_worker(stream)->loop;
    uint64_t at_ms = silent_at_ms(stream), due_ms = stream_attempt_due_ms(stream);

    if (stream->answer_at_ms < at_ms)
        at_ms = stream->answer_at_ms;
    if (due_ms < at_ms)
        at_ms = due_ms;
    if (at_ms != UINT64_MAX)
        loop_set_timer(loop, &stream->timer, at_ms > loop->now_ms ? at_ms - loop->now_ms : 0,
                       answer_expired);
}

static void answer_expired(struct timer *timer)
{
    struct stream *stream = OWNER(timer, struct stream, timer);
    uint64_t now_ms = stream_worker(stream)->loop.now_ms;

    if (stream->answer_at_ms <= now_ms || silent_at_ms(stream) <= now_ms) {
        stream_expire(stream);
        return;
    }
    stream_set_timer(stream);
    if (stream_attempt_due_ms(stream) <= now_ms)
        stream_attempt_due(stream);
}

bool stream_reserve_timer(struct stream *stream)
{
    if (!stream->timed)
        stream->timed = timers_reserve(&stream_worker(stream)->loop.timers, 1);
    return stream->timed;
}

void stream_begin_timer(struct stream *stream, uint32_t ms)
{
    struct loop *loop = &stream_worker(stream)->loop;

    stream->answer_at_ms = ms ? stream->began_ns / NS_PER_MS + ms : UINT64_MAX;
    stream->complete_ms = loop->now_ms;
    if (stream->answer_at_ms == UINT64_MAX && silent_at_ms(stream) == UINT64_MAX)
        return;
    if (!stream_reserve_timer(stream))
        return;
    stream_set_timer(stream);
}
