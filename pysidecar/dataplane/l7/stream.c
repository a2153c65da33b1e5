#include "l7/stream.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/owner.h"
#include "base/random.h"
#include "base/sockaddr.h"
#include "l7/downstream.h"
#include "l7/outcome.h"
#include "l7/pool.h"
#include "l7/router.h"
#include "l7/streams.h"
#include "l7/uplink.h"
#include "l7/wanted.h"
#include "upstream/routes.h"

enum {
    KEPT_BYTES = BLOCK_BYTES,       /* of a request that may be sent again */
    MOST_UNSENT = 16 * 1024 * 1024, /* answers that wait for one client that does not read them */
    SPARE_STREAMS = 256,
    MOST_WANTING = 1024, /* of a worker's requests that wait for a service */
};

static struct worker *worker_of(const struct stream *stream)
{
    return stream->downstream->session->worker;
}

static const struct codec *codec_used(const struct stream *stream)
{
    return stream->downstream->wire.codec;
}

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

static void unlink_stream(struct stream *stream)
{
    *stream->previous = stream->next;
    if (stream->next)
        stream->next->previous = stream->previous;
    stream->downstream->stream_count--;
    if (codec_used(stream)->multiplexes)
        stream->downstream->frame_bytes -= stream->record.bytes_sent;
}

static void copy_text(char *to, size_t size, struct text from)
{
    memcpy(to, from.at ? from.at : "", from.size < size ? from.size : size);
}

/* What a request is measured by: when turns began, since many requests are in one. */
static uint64_t elapsed_ns(const struct stream *stream)
{
    uint64_t ns = worker_of(stream)->loop.now_ns - stream->began_ns;

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

/* NULL when out of memory. */
static struct stream *stream_create(struct downstream *downstream, const struct message *request)
{
    struct session *session = downstream->session;
    struct stream *stream = take_stream(session->worker->streams);

    if (!stream)
        return NULL;
    stream->downstream = downstream;
    stream->id = request->id;
    stream->facts = request->facts;
    stream->idempotent = request->idempotent;
    stream->oneway = request->kind == MESSAGE_ONEWAY;
    stream->timer.index = TIMER_OFF;
    stream->began_ns = session->worker->loop.now_ns;
    stream->record.began_ns = real_ns(session->worker);
    stream->record.connection = session->id;
    stream->record.source = session->origin.source;
    stream->record.protocol = (uint8_t)downstream->protocol;
    stream->record.direction = (uint8_t)session->origin.listener->direction;
    copy_text(stream->record.service, sizeof stream->record.service, request->service);
    copy_text(stream->record.method, sizeof stream->record.method, request->method);
    copy_text(stream->record.path, sizeof stream->record.path,
              request->path.size ? request->path : request->service);
    link_stream(downstream, stream);
    return stream;
}

/* ---- its place upstream ---- */

static void count_active(const struct stream *stream, int change)
{
    struct endpoint *endpoint = stream->pool->endpoint;
    unsigned index = worker_of(stream)->index;

    if (!endpoint)
        return;
    atomic_fetch_add_explicit(&endpoint->active, (unsigned)change, memory_order_relaxed);
    if (endpoint->tallies)
        counter_add(&endpoint->tallies[index].active, change);
}

static void count_service(const struct stream *stream, int change)
{
    if (stream->service)
        counter_add(&stream->service->standing->tallies[worker_of(stream)->index].active, change);
}

static void enter_pool(struct stream *stream, struct pool *pool)
{
    stream->pool = pool;
    count_active(stream, 1);
}

/* `complete`: the uplink has nothing more of it, and can go on. */
static void leave_pool(struct stream *stream, bool complete)
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

/* ---- waiting for a service ---- */

static void enter_wanting(struct stream *stream)
{
    struct streams *streams = worker_of(stream)->streams;

    stream->next_wanting = streams->wanting;
    stream->wanting = &streams->wanting;
    if (stream->next_wanting)
        stream->next_wanting->wanting = &stream->next_wanting;
    streams->wanting = stream;
}

static void unlink_wanting(struct stream *stream)
{
    *stream->wanting = stream->next_wanting;
    if (stream->next_wanting)
        stream->next_wanting->wanting = stream->wanting;
    stream->wanting = NULL;
}

static void leave_wanting(struct stream *stream)
{
    struct worker *worker = worker_of(stream);

    if (!stream->wanting)
        return;
    unlink_wanting(stream);
    worker->streams->wanting_count--;
    wanted_leave(worker->wanted);
}

/* ---- its end ---- */

static void set_flag(struct stream *stream, enum dp_flag flag)
{
    stream->record.flags |= 1u << flag;
}

static void report(struct stream *stream)
{
    struct session *session = stream->downstream->session;
    struct dp_request *record = &stream->record;

    record->duration_ns = elapsed_ns(stream);
    session->worker->handler->request_ended(
        session, record, stream->service ? stream->service->standing : NULL,
        stream->tried_count ? stream->tried[stream->tried_count - 1] : NULL);
}

/* Nothing more of it is to come, in either direction. The downstream does not know it any more. */
static void end(struct stream *stream, bool complete)
{
    struct worker *worker = worker_of(stream);
    struct streams *streams = worker->streams;

    stream->ended = true;
    leave_wanting(stream);
    timer_cancel(&worker->loop.timers, &stream->timer);
    if (stream->timed)
        timers_release(&worker->loop.timers, 1);
    leave_pool(stream, complete);
    report(stream);
    count_service(stream, -1);
    if (stream->service)
        shared_release(&stream->service->shared);
    buffer_release(&streams->blocks, &stream->request);
    unlink_stream(stream);
    stream->next = streams->ended_streams;
    streams->ended_streams = stream;
}

static uint64_t total_written(const struct wire *wire)
{
    return wire->written + buffer_held(&wire->out);
}

/* Adds what was written to the client since `before`. */
static void count_received(struct stream *stream, uint64_t before)
{
    uint64_t now = total_written(&stream->downstream->wire);

    if (now > before)
        stream->record.bytes_received += now - before;
}

static uint8_t class_of(const struct stream *stream, uint32_t status, bool succeeded)
{
    if (codec_used(stream)->protocol == DP_HTTP1)
        return (uint8_t)(status / 100 < DP_STATUS_CLASSES ? status / 100 : 0);
    return succeeded ? 2 : 5;
}

/* Answers it ourselves. False when out of memory. */
static bool write_rejection(struct stream *stream, enum dp_flag why, const struct message *problem)
{
    struct downstream *downstream = stream->downstream;
    struct wire *wire = &downstream->wire;
    uint64_t before = total_written(wire);
    uint32_t status = 0;
    struct rejection rejection = {
        .flag = why,
        .http_status = problem ? problem->http_status : 0,
        /* Where requests are multiplexed, the others on the connection go on. */
        .close = !wire->codec->multiplexes &&
                 (!stream->complete || !stream->facts.keep_alive || downstream->closing ||
                  downstream_is_draining(downstream)),
        .status = &status,
    };
    uint8_t *to = wire_room(wire, ENCODING_ROOM);
    size_t size;

    if (problem && problem->problem)
        rejection.reason = (struct text){problem->problem, (uint32_t)strlen(problem->problem)};
    size = to ? wire->codec->reject(&stream->facts, stream->id, &rejection, to, ENCODING_ROOM) : 0;
    if (size == 0)
        return false;
    wire_wrote(wire, size);
    count_received(stream, before);
    stream->record.status = status;
    stream->record.answered = 1;
    stream->record.status_class = class_of(stream, status, false);
    stream->record.first_byte_ns = elapsed_ns(stream);
    if (rejection.close)
        downstream->closing = true;
    return true;
}

/* Takes back an answer of which nothing has left yet. False: some of it has. */
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

/* Whether its connection ends as the upstream's did, in order: by the length of the answer, the
 * client sees that something is missing, and has what there is. */
static bool ends_alike(const struct stream *stream, enum dp_flag why)
{
    return why == DP_FLAG_UPSTREAM_RESET && stream->direct && stream->answering &&
           !stream->facts.http10 && stream->uplink && stream->uplink->wire.told_end;
}

/* It gets no answer of the service, or no complete one. Where it can get none at all, the
 * connection ends, too: the next answer would be taken for this one. */
static void fail(struct stream *stream, enum dp_flag why, const struct message *problem)
{
    struct downstream *downstream = stream->downstream;
    enum dp_end cut = DP_END_NONE;

    set_flag(stream, why);
    outcome_note_failure(stream, why);
    if (ends_alike(stream, why))
        downstream->closing = true;
    else if (stream->answering && !take_back(stream))
        cut = why == DP_FLAG_TIMEOUT ? DP_END_UPSTREAM_TIMEOUT : DP_END_UPSTREAM_RESET;
    else if (!stream->oneway && !write_rejection(stream, why, problem))
        cut = DP_END_NO_RESOURCES;
    if (!stream->complete)
        downstream->closing = true;
    end(stream, false);
    if (cut)
        downstream_cut(downstream, cut);
    else
        downstream_answered(downstream);
}

/* ---- its time ---- */

/* Whether the client does not take what there is of the answer. */
static bool waits_for_client(const struct stream *stream)
{
    return stream->answering && (buffer_held(&stream->downstream->wire.out) > 0 ||
                                 (stream->uplink && wire_is_held_back(&stream->uplink->wire)));
}

/* When the endpoint has been silent for too long. A request that is not complete waits for the
 * client. */
static uint64_t silent_at_ms(const struct stream *stream)
{
    uint32_t silent_ms = stream->service ? stream->service->silent_ms : 0;
    uint64_t since_ms = stream->complete_ms;

    if (silent_ms == 0)
        return UINT64_MAX;
    if (!stream->complete || waits_for_client(stream))
        return worker_of(stream)->loop.now_ms + silent_ms;
    if (stream->uplink && !codec_used(stream)->multiplexes &&
        stream->uplink->wire.last_active_ms > since_ms)
        since_ms = stream->uplink->wire.last_active_ms;
    return since_ms + silent_ms;
}

void stream_expire(struct stream *stream)
{
    trace(worker_of(stream), stream->record.connection, expired, DP_TIMER_ANSWER, 0);
    fail(stream, DP_FLAG_TIMEOUT, NULL);
}

static void answer_expired(struct timer *timer);

static void set_timer(struct stream *stream)
{
    struct loop *loop = &worker_of(stream)->loop;
    uint64_t at_ms = silent_at_ms(stream);

    if (stream->answer_at_ms < at_ms)
        at_ms = stream->answer_at_ms;
    if (at_ms != UINT64_MAX)
        loop_set_timer(loop, &stream->timer, at_ms - loop->now_ms, answer_expired);
}

static void answer_expired(struct timer *timer)
{
    struct stream *stream = OWNER(timer, struct stream, timer);
    uint64_t now_ms = worker_of(stream)->loop.now_ms;

    if (stream->answer_at_ms > now_ms && silent_at_ms(stream) > now_ms) {
        set_timer(stream);
        return;
    }
    stream_expire(stream);
}

static bool reserve_timer(struct stream *stream)
{
    if (!stream->timed)
        stream->timed = timers_reserve(&worker_of(stream)->loop.timers, 1);
    return stream->timed;
}

/* `ms`: for all of the answer; 0: there is no such limit. */
static void begin_timer(struct stream *stream, uint32_t ms)
{
    struct loop *loop = &worker_of(stream)->loop;

    stream->answer_at_ms = ms ? stream->began_ns / NS_PER_MS + ms : UINT64_MAX;
    stream->complete_ms = loop->now_ms;
    if (stream->answer_at_ms == UINT64_MAX && silent_at_ms(stream) == UINT64_MAX)
        return;
    if (!reserve_timer(stream))
        return;
    set_timer(stream);
}

/* ---- finding an upstream ---- */

static void try_next(struct stream *stream, enum dp_flag otherwise);

/* Picks an endpoint of what the connection's route names. False: all were tried. */
static bool pick_of_route(struct stream *stream, struct pool_key *key)
{
    struct worker *worker = worker_of(stream);
    struct choice *choice = &stream->downstream->choice;
    struct search search = {
        .since_ms = ejected_since(worker->timeouts, worker->loop.now_ms),
        .random = &worker->tables->random,
        .tried = stream->tried,
        .tried_count = stream->tried_count,
        .any = true,
    };

    if (!choice->cluster) {
        key->address = choice_default_upstream(&stream->downstream->session->origin);
        return stream->tried_count == 0;
    }
    key->cluster = choice->cluster;
    key->endpoint = cluster_pick_untried(choice->cluster, &search);
    if (!key->endpoint)
        return false;
    key->address = key->endpoint->address;
    return true;
}

static bool pick(struct stream *stream, struct pool_key *key)
{
    struct worker *worker = worker_of(stream);
    struct pick picked = {
        .since_ms = ejected_since(worker->timeouts, worker->loop.now_ms),
        .now_ms = worker->loop.now_ms,
        .random = &worker->tables->random,
        .hash = stream->hash,
        .tried = stream->tried,
        .tried_count = stream->tried_count,
    };

    if (!stream->service)
        return pick_of_route(stream, key);
    key->service = stream->service;
    key->endpoint = service_pick(stream->service, &picked);
    stream->record.flags |= picked.flags;
    if (!key->endpoint)
        return false;
    key->address = key->endpoint->address;
    return true;
}

static bool is_here(const struct stream *stream, const struct mosnhook_address *address)
{
    const struct origin *origin = &stream->downstream->session->origin;

    return origin->listener->direction == DP_INBOUND &&
           memcmp(address->ip, origin->original_destination.ip, sizeof address->ip) == 0;
}

static void try_pool(struct stream *stream, const struct pool_key *key)
{
    struct pool *pool;

    stream->record.attempts++;
    stream->record.upstream = key->address;
    stream->tried_ns = worker_of(stream)->loop.now_ns;
    stream->tried[stream->tried_count++] = key->endpoint;
    if (routes_is_own(worker_of(stream)->routes, &key->address)) {
        fail(stream, DP_FLAG_LOOP, NULL);
        return;
    }
    pool = pool_find(worker_of(stream), key);
    if (!pool) {
        fail(stream, DP_FLAG_OVERLOAD, NULL);
        return;
    }
    enter_pool(stream, pool);
    pool_request(pool, stream);
}

/* The next endpoint; where there is none, it fails for the reason `otherwise`. */
static void try_next(struct stream *stream, enum dp_flag otherwise)
{
    struct pool_key key = {
        .listener = stream->downstream->session->origin.listener,
        .codec = codec_used(stream),
    };

    if (stream->tried_count >= MOST_ATTEMPTS || !pick(stream, &key)) {
        fail(stream, otherwise, NULL);
        return;
    }
    key.is_here = is_here(stream, &key.address);
    try_pool(stream, &key);
}

void stream_unassigned(struct stream *stream, enum dp_flag why, int error)
{
    bool connecting = why == DP_FLAG_CONNECT_FAILED || why == DP_FLAG_CONNECT_TIMEOUT;

    trace(worker_of(stream), stream->record.connection, connect_failed, error,
          stream->record.attempts);
    outcome_note_failure(stream, why);
    leave_pool(stream, false);
    if (connecting)
        try_next(stream, why);
    else
        fail(stream, why, NULL);
}

/* ---- sending the request ---- */

/* A frame that was kept, with its id on the uplink. */
static size_t encode_kept(struct stream *stream, uint8_t *to, size_t room)
{
    const struct codec *codec = codec_used(stream);
    struct decoder decoder = {.limits = worker_of(stream)->streams->limits};
    struct adjustment adjustment = {.id = stream->upstream_id};
    struct message message = {0};
    size_t consumed;

    if (codec->decode(&decoder, stream->request.data + stream->request.start,
                      buffer_held(&stream->request), &consumed, &message) != CODEC_HEAD)
        return 0;
    return codec->encode(&stream->encoder, &message, &adjustment, to, room);
}

static bool write_request(struct stream *stream, struct uplink *uplink)
{
    struct wire *wire = &uplink->wire;
    uint32_t held = buffer_held(&stream->request);
    size_t size = held;
    uint8_t *to;

    if (stream->fresh) {
        size = stream->fresh_room;
        to = wire_room(wire, size);
        stream->adjustment->id = stream->upstream_id;
        size = to ? uplink->pool->codec->encode(&stream->encoder, stream->fresh, stream->adjustment,
                                                to, size)
                  : 0;
    } else if (uplink->pool->codec->multiplexes) {
        to = wire_room(wire, held + ENCODING_ROOM);
        size = to ? encode_kept(stream, to, held + ENCODING_ROOM) : 0;
    } else {
        to = wire_room(wire, size);
        if (to)
            memcpy(to, stream->request.data + stream->request.start, size);
    }
    if (!to || size == 0)
        return false;
    wire_wrote(wire, size);
    return true;
}

void stream_assigned(struct stream *stream, struct uplink *uplink)
{
    struct downstream *downstream = stream->downstream;

    if (!uplink_begin(uplink, stream)) {
        leave_pool(stream, false);
        fail(stream, DP_FLAG_OVERLOAD, NULL);
        return;
    }
    if (!write_request(stream, uplink)) {
        fail(stream, DP_FLAG_OVERLOAD, NULL);
        return;
    }
    if (stream->oneway) {
        end(stream, true);
        downstream_answered(downstream);
        return;
    }
    uplink->leaving |= stream->binds;
    if (!downstream->wire.running) /* else it is not known yet what was read */
        downstream_pass_end(downstream);
    if (uplink->pool->codec->multiplexes)
        stream->keeps = false;
    if (!stream->keeps)
        buffer_release(&worker_of(stream)->streams->blocks, &stream->request);
    downstream_update(downstream);
}

/* ---- the request ---- */

/* How much longer the request may become, see ENCODING_ROOM. */
static size_t rewriting_room(const struct adjustment *adjustment)
{
    const struct rewrite *rewrite = adjustment->rewrite;
    size_t room = ENCODING_ROOM;

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
    struct blocks *blocks = &worker_of(stream)->streams->blocks;
    uint8_t *to = buffer_room(blocks, &stream->request, room);
    size_t size =
        to ? codec_used(stream)->encode(&stream->encoder, request, adjustment, to, room) : 0;

    if (size == 0) {
        buffer_release(blocks, &stream->request);
        return false;
    }
    stream->request.end += (uint32_t)size;
    stream->keeps = true;
    return true;
}

static bool begins_with(struct text text, struct text beginning)
{
    text.size = text.size < beginning.size ? text.size : beginning.size;
    return text_equal_folded(text, beginning);
}

/* NTLM and Negotiate authenticate a connection, not a request (RFC 4559, 6): the next request on it
 * would be the same user's, whoever sends it. `name`: of the header. */
static bool binds_connection(const struct message *message, struct text name)
{
    for (uint32_t i = 0; i < message->field_count; i++) {
        const struct field *field = &message->fields[i];

        if (text_equal_folded(field->name, name) && (begins_with(field->value, TEXT("negotiate")) ||
                                                     begins_with(field->value, TEXT("ntlm"))))
            return true;
    }
    return false;
}

static const struct dp_listener *listener_of(const struct stream *stream)
{
    return stream->downstream->session->origin.listener;
}

/* Finds its service. */
static void route(const struct stream *stream, const struct message *request, struct routed *routed)
{
    struct downstream *downstream = stream->downstream;
    const struct dp_listener *listener = listener_of(stream);
    struct worker *worker = worker_of(stream);

    if (listener->transport == DP_TRANSPORT_LISTENER)
        router_route_at(worker, listener->number, downstream->protocol, request, routed);
    else
        router_route(worker, (enum dp_scope)listener->direction, downstream->protocol, request,
                     routed);
}

/* Takes what was found. False: it is over. */
static bool take_route(struct stream *stream, const struct message *request,
                       const struct routed *routed)
{
    const struct dp_listener *listener = listener_of(stream);

    trace(worker_of(stream), stream->record.connection, routed, routed->rule, DP_REQUESTS);
    stream->service = routed->service;
    stream->hash = routed->hash;
    stream->direct = !stream->service && listener->transport != DP_TRANSPORT_LISTENER &&
                     !stream->downstream->choice.cluster && !codec_used(stream)->multiplexes;
    if (stream->service) {
        shared_reference(&stream->service->shared);
        memset(stream->record.service, 0, sizeof stream->record.service);
        copy_text(stream->record.service, sizeof stream->record.service, stream->service->name);
        count_service(stream, 1);
    }
    if (request->facts.connect && !stream->direct) {
        fail(stream, DP_FLAG_REFUSED, NULL);
        return false;
    }
    if (!stream->service && listener->transport == DP_TRANSPORT_LISTENER) {
        fail(stream, DP_FLAG_NO_ROUTE, NULL);
        return false;
    }
    return true;
}

static uint32_t timeout_for(const struct routed *routed, const struct message *request)
{
    if (routed->timeout_ms == 0)
        return request->timeout_ms;
    if (request->timeout_ms == 0)
        return routed->timeout_ms;
    return routed->timeout_ms < request->timeout_ms ? routed->timeout_ms : request->timeout_ms;
}

/* Sends it at once where it can be, and keeps it where it has to wait, or may be sent again. */
static void send_request(struct stream *stream, const struct message *request,
                         struct adjustment *adjustment, size_t size)
{
    bool multiplexes = codec_used(stream)->multiplexes;
    size_t room = size + rewriting_room(adjustment);

    if (!multiplexes && !keep_request(stream, request, adjustment, room)) {
        fail(stream, DP_FLAG_OVERLOAD, NULL);
        return;
    }
    stream->binds =
        !multiplexes && !stream->direct && binds_connection(request, TEXT("authorization"));
    if (multiplexes) {
        stream->fresh = request;
        stream->fresh_room = room;
        stream->adjustment = adjustment;
    }
    try_next(stream, DP_FLAG_NO_ENDPOINT);
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

/* With what was found for it. */
static void go_on(struct stream *stream, const struct message *request, const struct routed *routed)
{
    struct adjustment adjustment = {.rewrite = routed->rewrite, .facts = request->facts};
    const struct mosnhook_address *origin =
        &stream->downstream->session->origin.original_destination;
    char destination[ADDRESS_TEXT_BYTES];

    if (!take_route(stream, request, routed))
        return;
    adjustment.direct = stream->direct;
    begin_timer(stream, timeout_for(routed, request));
    if (routed->rewrite && routed->rewrite->original_destination.size)
        adjustment.original_destination =
            (struct text){destination, (uint32_t)address_format(origin, destination)};
    send_request(stream, request, &adjustment, request->frame.size);
}

/* ---- a service that the table does not know, or no endpoint of ---- */

/* False: it is too long, and a part of it would be another service's. */
static bool copy_whole(char *to, size_t size, struct text from)
{
    copy_text(to, size, from);
    return from.size < size && (from.size == 0 || !memchr(from.at, '\0', from.size));
}

static struct text name_of(const struct message *request, struct text header)
{
    if (header.size == 0)
        return request->service;
    for (uint32_t i = 0; i < request->field_count; i++)
        if (text_equal_folded(request->fields[i].name, header))
            return request->fields[i].value;
    return (struct text){NULL, 0};
}

/* False: no service is named. */
static bool describe(const struct stream *stream, const struct message *request,
                     struct text name_header, struct dp_wanted *what)
{
    bool is_http = stream->downstream->protocol == DP_HTTP1;
    struct text name = name_of(request, is_http ? name_header : (struct text){NULL, 0});

    memset(what, 0, sizeof *what);
    what->protocol = stream->downstream->protocol;
    return name.size > 0 && copy_whole(what->name, sizeof what->name, name) &&
           copy_whole(what->version, sizeof what->version, request->version) &&
           copy_whole(what->group, sizeof what->group, request->group);
}

static uint64_t hash_wanted(const struct dp_wanted *what)
{
    const char *bytes = (const char *)what;
    uint64_t hash = 0;

    for (size_t i = 0; i < sizeof *what; i++)
        hash = (hash ^ (uint8_t)bytes[i]) * UINT64_C(0x100000001b3);
    return random_mix(hash);
}

/* Tells the control thread, unless another request has. */
static bool tell(struct stream *stream, const struct dp_wanted *what)
{
    struct worker *worker = worker_of(stream);

    stream->wanted = hash_wanted(what);
    for (struct stream *each = worker->streams->wanting; each; each = each->next_wanting)
        if (each->wanted == stream->wanted)
            return true;
    return wanted_tell(worker->wanted, what);
}

/* 0: it does not wait. */
static uint32_t waiting_time(const struct stream *stream, const struct routed *routed)
{
    const struct dp_listener *listener = listener_of(stream);

    if (routed->service)
        return routed->service->cluster ? 0 : routed->service->await_ms;
    if (listener->transport != DP_TRANSPORT_LISTENER)
        return 0;
    return router_entrance(worker_of(stream), listener->number).on_demand_ms;
}

/* Where the service is not in the table. False: nobody can be told of it. */
static bool demand(struct stream *stream, const struct message *request)
{
    struct entrance entrance = router_entrance(worker_of(stream), listener_of(stream)->number);
    struct dp_wanted what;

    return describe(stream, request, entrance.name_header, &what) && tell(stream, &what);
}

/* The request as it came is decoded once more. */
static void ask_again(struct stream *stream, bool expired)
{
    struct worker *worker = worker_of(stream);
    struct decoder decoder = {.limits = worker->streams->limits};
    struct buffer came = stream->request;
    struct message request = {0};
    struct routed routed;
    size_t consumed = 0;
    enum codec_event event = codec_used(stream)->decode(&decoder, came.data + came.start,
                                                        buffer_held(&came), &consumed, &request);

    assert(event == CODEC_HEAD && consumed == buffer_held(&came));
    (void)event;
    request.frame = (struct text){(const char *)came.data + came.start, buffer_held(&came)};
    route(stream, &request, &routed);
    if (!expired && waiting_time(stream, &routed) > 0) {
        enter_wanting(stream);
        return;
    }
    worker->streams->wanting_count--;
    wanted_leave(worker->wanted);
    timer_cancel(&worker->loop.timers, &stream->timer);
    stream->request = (struct buffer){.data = NULL};
    go_on(stream, &request, &routed);
    buffer_release(&worker->streams->blocks, &came);
}

static void waited_too_long(struct timer *timer)
{
    struct stream *stream = OWNER(timer, struct stream, timer);

    trace(worker_of(stream), stream->record.connection, expired, DP_TIMER_ANSWER, 0);
    unlink_wanting(stream);
    ask_again(stream, true);
}

/* Keeps it as it came until there is a table that says where to. False: it does not wait. */
static bool wait_for_service(struct stream *stream, const struct message *request,
                             const struct routed *routed)
{
    struct worker *worker = worker_of(stream);
    struct streams *streams = worker->streams;
    uint32_t ms = waiting_time(stream, routed);

    if (ms == 0 || streams->wanting_count >= MOST_WANTING || request->facts.connect ||
        !reserve_timer(stream) || !wanted_enter(worker->wanted))
        return false;
    if (!buffer_add(&streams->blocks, &stream->request, request->frame.at, request->frame.size) ||
        (!routed->service && !demand(stream, request))) {
        buffer_release(&streams->blocks, &stream->request);
        wanted_leave(worker->wanted);
        return false;
    }
    streams->wanting_count++;
    enter_wanting(stream);
    if (request->timeout_ms && request->timeout_ms < ms)
        ms = request->timeout_ms;
    loop_set_timer(&worker->loop, &stream->timer, ms, waited_too_long);
    return true;
}

void streams_ask_again(struct streams *streams)
{
    struct stream *all = streams->wanting;

    streams->wanting = NULL;
    if (all)
        all->wanting = &all;
    while (all) {
        struct stream *stream = all;

        unlink_wanting(stream);
        ask_again(stream, false);
    }
}

/* ---- its beginning ---- */

void stream_begin(struct downstream *downstream, const struct message *request, size_t consumed)
{
    struct stream *stream = stream_create(downstream, request);
    struct routed routed = {0};

    if (!stream) {
        downstream_cut(downstream, DP_END_NO_RESOURCES);
        return;
    }
    stream->record.bytes_sent = consumed;
    downstream->frame_bytes += codec_used(stream)->multiplexes ? consumed : 0;
    stream->complete = codec_used(stream)->multiplexes || !request->has_body;
    route(stream, request, &routed);
    if (!wait_for_service(stream, request, &routed))
        go_on(stream, request, &routed);
}

void stream_refuse(struct downstream *downstream, const struct message *problem)
{
    static const struct message nothing = {0};
    struct stream *stream = stream_create(downstream, &nothing);

    downstream->closing = true;
    if (!stream) {
        downstream_cut(downstream, DP_END_NO_RESOURCES);
        return;
    }
    stream->oneway = codec_used(stream)->multiplexes; /* no id to answer to */
    fail(stream, DP_FLAG_MALFORMED_REQUEST, problem);
}

/* Also for another attempt, while that is possible. */
static void keep_more(struct stream *stream, const void *data, size_t size)
{
    struct blocks *blocks = &worker_of(stream)->streams->blocks;

    if (!stream->keeps)
        return;
    if (!stream->encoder.chunked && buffer_held(&stream->request) + size <= KEPT_BYTES &&
        buffer_add(blocks, &stream->request, data, size))
        return;
    stream->keeps = false;
    if (stream->uplink)
        buffer_release(blocks, &stream->request);
}

void stream_request_data(struct stream *stream, const struct message *message, size_t consumed)
{
    struct uplink *uplink = stream->uplink;

    stream->record.bytes_sent += consumed;
    assert(uplink); /* nothing is read before */
    keep_more(stream, message->data.at, message->data.size);
    if (!wire_send_body(&uplink->wire, message->data.at, message->data.size)) {
        fail(stream, DP_FLAG_OVERLOAD, NULL);
        return;
    }
    wire_splice_to(&stream->downstream->wire, &uplink->wire);
    downstream_update(stream->downstream);
}

void stream_request_end(struct stream *stream, const struct message *message, size_t consumed)
{
    const struct codec *codec = codec_used(stream);
    size_t room = consumed + ENCODING_ROOM, size;
    uint8_t *to;

    stream->record.bytes_sent += consumed;
    stream->complete = true;
    stream->complete_ms = worker_of(stream)->loop.now_ms;
    if (stream->encoder.chunked) {
        assert(stream->uplink);
        stream->keeps = false;
        to = wire_room(&stream->uplink->wire, room);
        if (!to) {
            fail(stream, DP_FLAG_OVERLOAD, NULL);
            return;
        }
        size = codec->end(&stream->encoder, message, to, room);
        wire_wrote(&stream->uplink->wire, size);
    }
    downstream_update(stream->downstream);
}

void stream_request_malformed(struct stream *stream, const struct message *message)
{
    stream->downstream->closing = true;
    fail(stream,
         stream->downstream->wire.told_end ? DP_FLAG_DOWNSTREAM_CLOSED : DP_FLAG_MALFORMED_REQUEST,
         message);
}

void stream_upgraded(struct stream *stream)
{
    set_flag(stream, DP_FLAG_UPGRADED);
    end(stream, false);
}

void stream_abandon(struct stream *stream, enum dp_flag why)
{
    set_flag(stream, why);
    end(stream, false);
}

/* ---- the answer ---- */

static void note_status(struct stream *stream, const struct message *message)
{
    struct dp_request *record = &stream->record;

    record->status = message->status;
    record->answered = 1;
    record->status_class = class_of(stream, message->status, message->succeeded);
    record->first_byte_ns = elapsed_ns(stream);
    if (message->service_failed)
        set_flag(stream, DP_FLAG_SERVICE_ERROR);
}

/* False: it failed. */
static bool pass_head(struct stream *stream, const struct message *message, size_t size)
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
    if (wrote == 0) {
        fail(stream, to ? DP_FLAG_MALFORMED_RESPONSE : DP_FLAG_OVERLOAD, NULL);
        return false;
    }
    wire_wrote(wire, wrote);
    return true;
}

/* Whether the client does not take what there is already: nothing more is read until it does. */
static bool hold_back(struct stream *stream)
{
    if (!wire_is_behind(&stream->downstream->wire))
        return false;
    wire_pause(&stream->uplink->wire);
    return true;
}

static void finish(struct stream *stream)
{
    struct downstream *downstream = stream->downstream;

    if (downstream->wire.encoder.close || !stream->complete)
        downstream->closing = true;
    end(stream, stream->complete);
    if (stream->direct && !downstream->own)
        downstream->closing = true;
    downstream_answered(downstream);
}

static void response_head(struct stream *stream, const struct message *message, size_t size)
{
    struct downstream *downstream = stream->downstream;
    uint64_t before = total_written(&downstream->wire);
    uint32_t unsent = buffer_held(&downstream->wire.out);

    if (message->kind == MESSAGE_INTERIM) {
        if (!stream->facts.http10 && pass_head(stream, message, size)) {
            count_received(stream, before);
            hold_back(stream);
        }
        return;
    }
    if (message->upgraded && !stream->complete) { /* what is left of it would get lost */
        fail(stream, DP_FLAG_MALFORMED_RESPONSE, NULL);
        return;
    }
    note_status(stream, message);
    outcome_note(stream, stream->record.status_class == 5);
    if (!pass_head(stream, message, size))
        return;
    stream->answering = true;
    stream->answer_at = before;
    count_received(stream, before);
    buffer_release(&worker_of(stream)->streams->blocks, &stream->request);
    stream->keeps = false;
    if (!codec_used(stream)->multiplexes) {
        stream->uplink->leaving |=
            !stream->direct && binds_connection(message, TEXT("www-authenticate"));
        if (message->upgraded)
            downstream_upgrade(downstream, stream);
        return;
    }
    end(stream, true);
    if (unsent > MOST_UNSENT)
        downstream_cut(downstream, DP_END_NO_RESOURCES);
    else
        downstream_answered(downstream);
}

static void response_data(struct stream *stream, const struct message *message)
{
    struct wire *wire = &stream->downstream->wire;
    uint64_t before = total_written(wire);

    if (!wire_send_body(wire, message->data.at, message->data.size)) {
        fail(stream, DP_FLAG_OVERLOAD, NULL);
        return;
    }
    count_received(stream, before);
    if (!hold_back(stream))
        wire_splice_to(&stream->uplink->wire, wire);
}

static void response_end(struct stream *stream, const struct message *message, size_t size)
{
    struct wire *wire = &stream->downstream->wire;
    size_t room = size + ENCODING_ROOM;
    uint64_t before = total_written(wire);
    uint8_t *to;

    if (!stream->answering)
        return; /* of an interim answer */
    if (wire->encoder.chunked) {
        to = wire_room(wire, room);
        if (!to) {
            fail(stream, DP_FLAG_OVERLOAD, NULL);
            return;
        }
        wire_wrote(wire, wire->codec->end(&wire->encoder, message, to, room));
        count_received(stream, before);
    }
    finish(stream);
}

void stream_response(struct stream *stream, enum codec_event event, const struct message *message,
                     size_t size)
{
    if (event == CODEC_HEAD)
        response_head(stream, message, size);
    else if (event == CODEC_DATA)
        response_data(stream, message);
    else
        response_end(stream, message, size);
}

void stream_response_spliced(struct stream *stream, size_t bytes)
{
    stream->record.bytes_received += bytes;
}

/* Whether the request may be sent again: it was kept, nothing of an answer came, and either nothing
 * of it was sent, or the connection had been idle, which the upstream closed then. */
static bool may_be_sent_again(const struct stream *stream, enum dp_flag why)
{
    bool untouched = stream->uplink->wire.written == stream->written_before;

    return why == DP_FLAG_UPSTREAM_RESET && stream->keeps && stream->complete &&
           !stream->answering && stream->reused && !stream->retried &&
           (untouched || stream->idempotent) && stream->uplink->wire.read == stream->read_before;
}

/* Whether the client can tell by the end of its connection, and knows best, whether to send it
 * again: as on any connection that was kept open, and that the server does not want any more. */
static bool is_told_by_end(const struct stream *stream, enum dp_flag why)
{
    return why == DP_FLAG_UPSTREAM_RESET && stream->direct && stream->reused &&
           !stream->answering && stream->uplink->wire.read == stream->read_before;
}

static void end_unanswered(struct stream *stream, enum dp_flag why)
{
    struct downstream *downstream = stream->downstream;

    set_flag(stream, why);
    downstream->closing = true;
    end(stream, false);
    downstream_answered(downstream);
}

void stream_uplink_lost(struct stream *stream, enum dp_flag why)
{
    struct pool *pool = stream->pool;

    if (is_told_by_end(stream, why)) {
        end_unanswered(stream, why);
        return;
    }
    if (!may_be_sent_again(stream, why)) {
        fail(stream, why, NULL);
        return;
    }
    set_flag(stream, DP_FLAG_RETRIED);
    stream->retried = true;
    leave_pool(stream, false);
    pool_renew(pool);
    stream->tried_count--; /* the endpoint is not to blame */
    try_next(stream, why);
}

void stream_uplink_sent(struct stream *stream)
{
    struct wire *wire = &stream->downstream->wire;

    downstream_update(stream->downstream);
    if (wire->spliced_to && !wire->paused)
        wire_resume(wire); /* its pipe waited, or the next piece for it */
}

void stream_downstream_sent(struct stream *stream)
{
    if (stream->uplink && !codec_used(stream)->multiplexes)
        wire_resume(&stream->uplink->wire);
}
