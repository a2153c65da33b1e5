#include "l7/pool.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/owner.h"
#include "base/random.h"
#include "base/sockaddr.h"
#include "intercept/listener.h"
#include "l7/downstream.h"
#include "l7/streams.h"
#include "l7/uplink.h"

enum {
    /* Without a service, which has its own: */
    IDLE_MS = 60 * 1000,
    MOST_CONNECTIONS = 1024,
    MOST_PENDING = 1024,
    LOOK_MS = 1000,  /* from one look at idle uplinks to the next */
    MOST_SHARED = 8, /* of those that requests share: each may have much that waits to be sent */
};

/* ---- finding ---- */

static uint64_t hash_of(const struct pool_key *key)
{
    uint64_t words[3], hash = (uint64_t)(uintptr_t)key->codec;

    _Static_assert(sizeof key->address == sizeof words, "every byte of it counts");
    memcpy(words, &key->address, sizeof words);
    for (int i = 0; i < 3; i++)
        hash = random_mix(hash ^ words[i]);
    hash ^= key->service ? key->service->standing->number + 1 : 0;
    return key->owner ? random_mix(hash ^ (uint64_t)(uintptr_t)key->owner) : hash;
}

/* Whether it is connected to as if that were where the client wanted to go. */
static bool has_destination(const struct pool_key *key)
{
    return !key->endpoint || key->is_here;
}

/* Sockets are made alike for both. */
static bool is_alike(const struct dp_listener *one, const struct dp_listener *other)
{
    return one->direction == other->direction && one->mark == other->mark &&
           one->application_mark == other->application_mark &&
           memcmp(one->application_source, other->application_source,
                  sizeof one->application_source) == 0;
}

static bool is_for(const struct pool *pool, const struct pool_key *key)
{
    return pool->codec == key->codec && pool->endpoint == key->endpoint &&
           pool->owner == key->owner &&
           memcmp(&pool->address, &key->address, sizeof pool->address) == 0 &&
           address_is_zero(&pool->origin.original_destination) == !has_destination(key) &&
           is_alike(&pool->settings, key->listener);
}

/* References what the endpoint is of, as it is now. */
static void use(struct pool *pool, const struct pool_key *key)
{
    if (pool->service == key->service && pool->cluster == key->cluster)
        return;
    if (key->service)
        shared_reference(&key->service->shared);
    if (key->cluster)
        shared_reference(&key->cluster->shared);
    if (pool->service)
        shared_release(&pool->service->shared);
    if (pool->cluster)
        shared_release(&pool->cluster->shared);
    pool->service = key->service;
    pool->cluster = key->cluster;
}

static void look_expired(struct timer *timer);

static void serve_task(struct task *task)
{
    pool_serve(OWNER(task, struct pool, serve));
}

static struct pool *pool_create(struct worker *worker, const struct pool_key *key, uint64_t hash)
{
    struct pool *pool = calloc(1, sizeof *pool);

    if (!pool || !timers_reserve(&worker->loop.timers, 1)) {
        free(pool);
        return NULL;
    }
    if (!map_add(&worker->streams->pools, &pool->entry, hash)) {
        timers_release(&worker->loop.timers, 1);
        free(pool);
        return NULL;
    }
    pool->worker = worker;
    pool->codec = key->codec;
    pool->endpoint = key->endpoint;
    pool->owner = key->owner;
    if (pool->owner)
        pool->owner->pool = pool;
    pool->address = key->address;
    pool->settings = *key->listener;
    pool->settings.transport = DP_TRANSPORT_LISTENER; /* no source to keep */
    pool->settings.preserve_source = 0;
    pool->origin.listener = &pool->settings;
    if (has_destination(key))
        pool->origin.original_destination = key->address;
    pool->last_waiting = &pool->waiting;
    pool->serve.run = serve_task;
    pool->timer.index = TIMER_OFF;
    loop_set_timer(&worker->loop, &pool->timer, LOOK_MS, look_expired);
    return pool;
}

struct pool *pool_find(struct worker *worker, const struct pool_key *key)
{
    uint64_t hash = hash_of(key);
    struct pool *pool = NULL;

    for (struct map_entry *entry = map_first(&worker->streams->pools, hash); entry && !pool;
         entry = map_next(entry))
        if (is_for(OWNER(entry, struct pool, entry), key))
            pool = OWNER(entry, struct pool, entry);
    if (!pool)
        pool = pool_create(worker, key, hash);
    if (pool)
        use(pool, key);
    return pool;
}

/* ---- the limit of connections, which all workers and endpoints share ---- */

static struct standing *standing_of(const struct pool *pool)
{
    return pool->service ? pool->service->standing : NULL;
}

/* A pool without a connection does not wait until another one's are idle for long. */
static void call_others(struct pool *pool)
{
    struct listeners *listeners = pool->worker->listeners;

    for (uint32_t i = 0; i < listeners->worker_count; i++) {
        atomic_store_explicit(&listeners->workers[i].streams->starved, true, memory_order_relaxed);
        worker_wake(&listeners->workers[i]);
    }
}

static void set_starved(struct pool *pool, bool starved)
{
    if (pool->starved == starved)
        return;
    pool->starved = starved;
    atomic_fetch_add_explicit(&standing_of(pool)->starved, starved ? 1U : -1U,
                              memory_order_relaxed);
    if (starved)
        call_others(pool);
}

bool pool_is_wanted(const struct pool *pool)
{
    const struct standing *standing = standing_of(pool);

    return standing && !pool->starved &&
           atomic_load_explicit(&standing->starved, memory_order_relaxed) > 0;
}

void pool_count(struct pool *pool, int change)
{
    struct endpoint *endpoint = pool->endpoint;
    struct standing *standing = standing_of(pool);
    unsigned index = pool->worker->index;
    struct tally *tally = endpoint ? endpoint_tally(endpoint, index) : NULL;

    pool->uplink_count += (uint32_t)change;
    if (tally)
        counter_add(&tally->connections, change);
    if (!standing)
        return;
    atomic_fetch_add_explicit(&standing->connections, (unsigned)change, memory_order_relaxed);
    counter_add(&standing->tallies[index].connections, change);
    if (change > 0)
        set_starved(pool, false);
    else if (atomic_load_explicit(&standing->starved, memory_order_relaxed) > 0)
        call_others(pool);
}

/* One that is idle, or else the next one that will be. */
static void give_one(struct pool *pool)
{
    for (struct uplink *uplink = pool->ready; uplink; uplink = uplink->next)
        if (uplink->busy == 0) {
            uplink_close(uplink, false);
            return;
        }
    if (pool->ready)
        pool->ready->leaving = true;
}

void pool_share(struct pool *pool)
{
    if (pool->starved)
        task_schedule(&pool->worker->loop.tasks, &pool->serve);
    else if (pool_is_wanted(pool))
        give_one(pool);
}

/* ---- waiting ---- */

static void count_waiting(struct pool *pool, int change)
{
    pool->waiting_count += (uint32_t)change;
    if (!pool->service)
        return;
    atomic_fetch_add_explicit(&pool->service->standing->pending, (unsigned)change,
                              memory_order_relaxed);
    counter_add(&pool->service->standing->tallies[pool->worker->index].pending, change);
}

static bool may_wait(const struct pool *pool)
{
    if (!pool->service)
        return !pool_is_shared(pool) || pool->waiting_count < MOST_PENDING;
    return atomic_load_explicit(&pool->service->standing->pending, memory_order_relaxed) <
           pool->service->pending;
}

static void enqueue(struct pool *pool, struct stream *stream)
{
    stream->next_waiting = NULL;
    stream->waiting = pool->last_waiting;
    *pool->last_waiting = stream;
    pool->last_waiting = &stream->next_waiting;
    count_waiting(pool, 1);
}

void pool_leave(struct pool *pool, struct stream *stream)
{
    if (!stream->waiting)
        return;
    *stream->waiting = stream->next_waiting;
    if (stream->next_waiting)
        stream->next_waiting->waiting = stream->waiting;
    else
        pool->last_waiting = stream->waiting;
    stream->waiting = NULL;
    count_waiting(pool, -1);
    if (!pool->waiting)
        set_starved(pool, false);
}

/* ---- serving ---- */

/* One that the stream may have. */
static struct uplink *ready_uplink(const struct pool *pool, const struct stream *stream)
{
    struct uplink *uplink = pool->ready, *own = stream->downstream->own;

    if (own && own->pool == pool && uplink_is_ready(own))
        return own;
    while (uplink && !uplink_is_ready(uplink))
        uplink = uplink->next;
    return uplink;
}

static bool may_open(const struct pool *pool)
{
    if (!pool_is_shared(pool)) /* as many as there are connections that want one */
        return true;
    if (!pool->service)
        return pool->uplink_count < MOST_CONNECTIONS;
    return !pool_is_wanted(pool) &&
           atomic_load_explicit(&pool->service->standing->connections, memory_order_relaxed) <
               pool->service->connections;
}

/* Whether some uplink is there that stays. */
static bool has_lasting(const struct pool *pool)
{
    const struct uplink *uplink = pool->ready;

    while (uplink && uplink->leaving)
        uplink = uplink->next;
    return uplink != NULL;
}

/* Where requests share an uplink, one is enough, until it takes no more. */
static bool wants_more(const struct pool *pool)
{
    if (pool->owner) /* whose requests would wait for room without us, too */
        return pool->connecting == 0 && !has_lasting(pool);
    if (pool->codec->is_http2) /* a server says how many streams it takes */
        return pool->connecting == 0;
    if (pool->codec->multiplexes)
        return pool->connecting == 0 && pool->uplink_count < MOST_SHARED;
    return pool->connecting < pool->waiting_count;
}

static void fail_first(struct pool *pool, enum dp_flag why, int error)
{
    struct stream *stream = pool->waiting;

    pool_leave(pool, stream);
    stream_unassigned(stream, why, error);
}

/* Whether nothing is there, or on its way, for the last one that waits. */
static bool waits_in_vain(const struct pool *pool)
{
    return pool_is_shared(pool) ? pool->uplink_count == 0 : pool->connecting < pool->waiting_count;
}

/* One more connection for those that wait, where there may be one. Else those that are there will
 * be free again; where there is none, another pool has to give one. */
static void open_more(struct pool *pool)
{
    if (!pool->waiting || !wants_more(pool))
        return;
    if (!may_open(pool)) {
        if (pool->uplink_count == 0)
            set_starved(pool, true);
        return;
    }
    if (!uplink_open(pool))
        while (pool->waiting && waits_in_vain(pool))
            fail_first(pool, DP_FLAG_OVERLOAD, 0);
}

void pool_serve(struct pool *pool)
{
    while (pool->waiting) {
        struct stream *stream = pool->waiting;
        struct uplink *uplink = ready_uplink(pool, stream);

        if (!uplink)
            break;
        pool_leave(pool, stream);
        stream_assigned(stream, uplink);
    }
    if (!pool_is_shared(pool)) /* whoever waited for it has left */
        pool_renew(pool);
    open_more(pool);
}

void pool_request(struct pool *pool, struct stream *stream)
{
    struct uplink *uplink = pool->waiting ? NULL : ready_uplink(pool, stream);

    if (uplink) {
        stream_assigned(stream, uplink);
        return;
    }
    if (!may_wait(pool))
        stream->record.flags |= 1u << DP_FLAG_LIMIT_PENDING;
    if (!may_wait(pool) || !stream_keep(stream)) {
        stream_unassigned(stream, DP_FLAG_OVERLOAD, 0);
        return;
    }
    enqueue(pool, stream);
    open_more(pool);
}

void pool_connect_failed(struct pool *pool, int error)
{
    enum dp_flag why = error == ETIMEDOUT ? DP_FLAG_CONNECT_TIMEOUT : DP_FLAG_CONNECT_FAILED;
    /* Where requests share connections, those that are there take all that wait. */
    uint32_t count = pool->codec->multiplexes ? 0 : 1;

    if (pool->uplink_count == 0)
        count = pool->waiting_count;
    else if (!pool_is_shared(pool) && !waits_in_vain(pool))
        count = 0;
    while (count-- > 0 && pool->waiting)
        fail_first(pool, why, error);
}

/* ---- what is not used ---- */

static bool is_removed(const struct pool *pool)
{
    return pool->service && pool->endpoint &&
           atomic_load_explicit(&pool->endpoint->generation, memory_order_relaxed) <
               pool->worker->streams->generation;
}

static void look_at(struct pool *pool, struct uplink *uplink, bool close)
{
    uint64_t idle_ms = pool->service ? pool->service->idle_ms : IDLE_MS;

    if (uplink->busy == 0 && !uplink->connector &&
        (close || pool->worker->loop.now_ms - uplink->used_ms >= idle_ms)) {
        uplink_close(uplink, false);
        return;
    }
    if (close)
        uplink->leaving = true;
    uplink_look(uplink);
}

static void pool_free(struct pool *pool)
{
    struct worker *worker = pool->worker;
    struct pool_key nothing = {0};

    assert(!pool->waiting);
    if (pool->owner)
        pool->owner->pool = NULL;
    task_cancel(&worker->loop.tasks, &pool->serve);
    timer_cancel(&worker->loop.timers, &pool->timer);
    timers_release(&worker->loop.timers, 1);
    map_remove(&worker->streams->pools, &pool->entry);
    use(pool, &nothing);
    free(pool);
}

void pool_look(struct pool *pool)
{
    bool close = is_removed(pool);

    for (struct uplink *uplink = pool->ready, *next; uplink; uplink = next) {
        next = uplink->next;
        look_at(pool, uplink, close);
    }
    if (close)
        for (struct uplink *uplink = pool->busy; uplink; uplink = uplink->next)
            uplink->leaving = true;
}

static void look_expired(struct timer *timer)
{
    struct pool *pool = OWNER(timer, struct pool, timer);

    loop_set_timer(&pool->worker->loop, timer, LOOK_MS, look_expired);
    pool_look(pool);
    pool_share(pool);
    if (pool->uplink_count == 0 && !pool->waiting)
        pool_free(pool);
}

static void close_uplinks(struct pool *pool, bool reset)
{
    while (pool->ready)
        uplink_close(pool->ready, reset);
    while (pool->busy)
        uplink_close(pool->busy, true);
}

void pool_close(struct pool *pool)
{
    close_uplinks(pool, false);
    pool_free(pool);
}

/* It is freed when it is looked at next: one of its uplinks may be on the stack. */
void pool_desert(struct pool *pool, bool reset)
{
    pool->owner->pool = NULL;
    pool->owner = NULL;
    close_uplinks(pool, reset);
}

void pool_renew(struct pool *pool)
{
    for (struct uplink *uplink = pool->ready, *next; uplink; uplink = next) {
        next = uplink->next;
        if (uplink->busy == 0)
            uplink_close(uplink, false);
    }
}
