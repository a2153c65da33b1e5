#include <assert.h>
#include <string.h>

#include "base/owner.h"
#include "base/random.h"
#include "base/sockaddr.h"
#include "l7/message.h"
#include "l7/outcome.h"
#include "l7/pool.h"
#include "l7/stream_parts.h"
#include "l7/wanted.h"
#include "upstream/routes.h"

enum { MOST_WANTING = 1024 }; /* of a worker's requests that wait for a service */

/* ---- its endpoint ---- */

/* Picks an endpoint of what the connection's route names. False: all were tried. */
static bool pick_of_route(struct stream *stream, struct pool_key *key)
{
    struct worker *worker = stream_worker(stream);
    struct choice *choice = &stream->downstream->choice;
    struct search search = {
        .since_ms = ejected_since(worker->timeouts, worker->loop.now_ms),
        .random = &worker->tables->random,
        .tried = stream->tried,
        .tried_count = stream->tried_count,
        .any = true,
    };

    if (!choice->cluster) {
        key->owner = stream->codec->is_http2 ? stream->downstream : NULL;
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
    struct worker *worker = stream_worker(stream);
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

void stream_note_tried(struct stream *stream, struct endpoint *endpoint)
{
    if (stream->tried_count == MOST_ATTEMPTS)
        memmove(stream->tried, stream->tried + 1, --stream->tried_count * sizeof *stream->tried);
    stream->tried[stream->tried_count++] = endpoint;
}

/* Of the endpoints that were tried, those stay that the service has: nothing else keeps the others.
 */
void stream_follow(struct stream *stream, struct service *service)
{
    struct service *before = stream->service;
    uint64_t generation = atomic_load_explicit(&service->generation, memory_order_relaxed);
    uint32_t kept = 0;

    if (service == before)
        return;
    for (uint32_t i = 0; i < stream->tried_count; i++)
        if (atomic_load_explicit(&stream->tried[i]->generation, memory_order_relaxed) == generation)
            stream->tried[kept++] = stream->tried[i];
    stream->tried_count = kept;
    shared_reference(&service->shared);
    stream->service = service;
    shared_release(&before->shared);
}

/* Where the service is spoken to in another protocol now, the request, which is encoded, stays with
 * what it was. */
static void follow_reload(struct stream *stream)
{
    struct service *service;

    if (!stream->service)
        return;
    service = router_successor(stream_worker(stream), stream->service);
    if (service && service->protocol == stream->service->protocol)
        stream_follow(stream, service);
}

/* Whether the table that made it go has another one after it, which does not know the endpoint. */
static bool is_removed(const struct stream *stream, const struct endpoint *endpoint)
{
    return atomic_load_explicit(&endpoint->generation, memory_order_relaxed) <
           stream_worker(stream)->streams->generation;
}

/* For another attempt: where all were tried, any but the last one, else that. False: there is none
 * any more. */
static bool pick_again(struct stream *stream, struct pool_key *key)
{
    for (int tries = 0; tries < 2 * MOST_ATTEMPTS; tries++) {
        if (pick(stream, key)) {
            if (!is_removed(stream, key->endpoint))
                return true;
            stream_note_tried(stream, key->endpoint);
        } else if (stream->tried_count > 0) {
            stream->tried[0] = stream->tried[stream->tried_count - 1];
            stream->tried_count = stream->tried_count > 1;
        } else {
            return false;
        }
    }
    return false;
}

/* False: there is no other one. A shadow tries only once. */
static bool pick_next(struct stream *stream, struct pool_key *key)
{
    if (stream->shadow)
        return stream->record.attempts == 0 && pick_again(stream, key);
    if (stream->retries > 0)
        return pick_again(stream, key);
    return stream->tried_count < MOST_ATTEMPTS && pick(stream, key);
}

static void try_pool(struct stream *stream, const struct pool_key *key)
{
    struct pool *pool;

    stream->record.attempts++;
    stream->record.upstream = key->address;
    stream->tried_ns = stream_worker(stream)->loop.now_ns;
    stream_note_tried(stream, key->endpoint);
    if (routes_is_own(stream_worker(stream)->routes, &key->address)) {
        stream_fail(stream, DP_FLAG_LOOP, NULL);
        return;
    }
    pool = pool_find(stream_worker(stream), key);
    if (!pool) {
        stream_fail(stream, DP_FLAG_OVERLOAD, NULL);
        return;
    }
    stream_enter_pool(stream, pool);
    pool_request(pool, stream);
}

void stream_try_next(struct stream *stream, enum dp_flag otherwise)
{
    struct pool_key key = {
        .listener = stream->downstream->session->origin.listener,
        .codec = stream->codec,
    };

    follow_reload(stream);
    if (!pick_next(stream, &key)) {
        stream_fail(stream, otherwise, NULL);
        return;
    }
    key.is_here = is_here(stream, &key.address);
    try_pool(stream, &key);
}

void stream_unassigned(struct stream *stream, enum dp_flag why, int error)
{
    bool connecting = why == DP_FLAG_CONNECT_FAILED || why == DP_FLAG_CONNECT_TIMEOUT;

    trace(stream_worker(stream), stream->record.connection, connect_failed, error,
          stream->record.attempts);
    outcome_note_failure(stream, why);
    stream_leave_pool(stream, false);
    if (!connecting)
        stream_fail(stream, why, NULL);
    else if (!stream->twin && !stream_has_retries(stream))
        stream_try_next(stream, why);
    else if (!stream_retry(stream, DP_RETRY_CONNECT_FAILURE, why))
        stream_fail(stream, why, NULL);
}

/* ---- its service ---- */

/* Finds its service. */
static void route(const struct stream *stream, const struct message *request, struct routed *routed)
{
    struct downstream *downstream = stream->downstream;
    const struct dp_listener *listener = stream_listener(stream);
    struct worker *worker = stream_worker(stream);

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
    const struct dp_listener *listener = stream_listener(stream);

    trace(stream_worker(stream), stream->record.connection, routed, routed->rule, DP_REQUESTS);
    if (routed->service)
        stream_set_service(stream, routed->service);
    stream->codec =
        stream->service ? codec_of(stream->service->protocol) : stream->downstream->wire.codec;
    stream->up = upstream_side_of(stream->codec);
    stream->hash = routed->hash;
    stream->direct = !stream->service && listener->transport != DP_TRANSPORT_LISTENER &&
                     !stream->downstream->choice.cluster &&
                     !stream->downstream->wire.codec->multiplexes;
    if (request->facts.connect && !stream->direct) {
        stream_fail(stream, DP_FLAG_REFUSED, NULL);
        return false;
    }
    if (!stream->service && listener->transport == DP_TRANSPORT_LISTENER) {
        stream_fail(stream, DP_FLAG_NO_ROUTE, NULL);
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

/* With what was found for it. */
static void go_on(struct stream *stream, const struct message *request, const struct routed *routed)
{
    struct adjustment adjustment = {.rewrite = routed->rewrite, .facts = request->facts};
    const struct mosnhook_address *origin =
        &stream->downstream->session->origin.original_destination;
    struct worker *worker = stream_worker(stream);
    char destination[ADDRESS_TEXT_BYTES];
    struct trace_context context;

    adjustment.trace = tracer_begin(worker, &worker->streams->tracer, stream->downstream->protocol,
                                    request, &stream->record, &context, &stream->span);
    if (!take_route(stream, request, routed))
        return;
    adjustment.direct = stream->direct;
    if (!stream_admit(stream, routed))
        return;
    stream_begin_timer(stream, timeout_for(routed, request));
    if (routed->rewrite && routed->rewrite->original_destination.size)
        adjustment.original_destination =
            (struct text){destination, (uint32_t)address_format(origin, destination)};
    stream_send(stream, request, &adjustment, request->frame.size);
}

/* ---- waiting for a service that the table does not know, or no endpoint of ---- */

static void enter_wanting(struct stream *stream)
{
    struct streams *streams = stream_worker(stream)->streams;

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

void stream_leave_wanting(struct stream *stream)
{
    struct worker *worker = stream_worker(stream);

    if (!stream->wanting)
        return;
    unlink_wanting(stream);
    worker->streams->wanting_count--;
    wanted_leave(worker->wanted);
}

/* False: it is too long, and a part of it would be another service's. */
static bool copy_whole(char *to, size_t size, struct text from)
{
    stream_copy_text(to, size, from);
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
    bool is_http = protocol_family(stream->downstream->protocol) == DP_HTTP1;
    bool is_call = request->rpc.size > 0;
    struct text name =
        is_call ? request->rpc : name_of(request, is_http ? name_header : (struct text){NULL, 0});

    memset(what, 0, sizeof *what);
    what->protocol = is_call ? DP_GRPC : protocol_family(stream->downstream->protocol);
    what->triple = request->triple;
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
    struct worker *worker = stream_worker(stream);

    stream->wanted = hash_wanted(what);
    for (struct stream *each = worker->streams->wanting; each; each = each->next_wanting)
        if (each->wanted == stream->wanted)
            return true;
    return wanted_tell(worker->wanted, what);
}

/* 0: it does not wait. */
static uint32_t waiting_time(const struct stream *stream, const struct routed *routed)
{
    const struct dp_listener *listener = stream_listener(stream);

    if (routed->service)
        return routed->service->cluster ? 0 : routed->service->await_ms;
    if (listener->transport != DP_TRANSPORT_LISTENER)
        return 0;
    return router_entrance(stream_worker(stream), listener->number).on_demand_ms;
}

/* Where the service is not in the table. False: nobody can be told of it. */
static bool demand(struct stream *stream, const struct message *request)
{
    struct entrance entrance =
        router_entrance(stream_worker(stream), stream_listener(stream)->number);
    struct dp_wanted what;

    return describe(stream, request, entrance.name_header, &what) && tell(stream, &what);
}

/* The request as it came is decoded once more. */
static void ask_again(struct stream *stream, bool expired)
{
    struct worker *worker = stream_worker(stream);
    struct decoder decoder = {.limits = worker->streams->limits};
    struct buffer came = stream->request;
    struct message request = {0};
    struct routed routed;
    size_t consumed = 0;
    enum codec_event event = stream->downstream->wire.codec->decode(
        &decoder, came.data + came.start, buffer_held(&came), &consumed, &request);

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

    trace(stream_worker(stream), stream->record.connection, expired, DP_TIMER_ANSWER, 0);
    unlink_wanting(stream);
    ask_again(stream, true);
}

/* Keeps it as it came until there is a table that says where to. False: it does not wait. */
static bool wait_for_service(struct stream *stream, const struct message *request,
                             const struct routed *routed)
{
    struct worker *worker = stream_worker(stream);
    struct streams *streams = worker->streams;
    uint32_t ms = waiting_time(stream, routed);

    if (ms == 0 || streams->wanting_count >= MOST_WANTING || request->facts.connect ||
        !stream_reserve_timer(stream) || !wanted_enter(worker->wanted))
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

/* ---- its way ---- */

void stream_find_way(struct stream *stream, const struct message *request)
{
    struct routed routed = {0};

    route(stream, request, &routed);
    if (!wait_for_service(stream, request, &routed))
        go_on(stream, request, &routed);
}
