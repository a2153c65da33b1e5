#include "l7/streams.h"

#include <assert.h>
#include <stdlib.h>

#include "base/owner.h"
#include "intercept/listener.h"
#include "l7/downstream.h"
#include "l7/http2.h"
#include "l7/pool.h"
#include "l7/router.h"
#include "l7/shadow.h"
#include "l7/uplink.h"

enum {
    MOST_BUFFERED = 256 * 1024 * 1024, /* bytes, of a worker */
    MOST_STREAMS = 64 * 1024,          /* of HTTP/2, of a worker's clients */
};

static void free_ended(struct streams *streams)
{
    while (streams->ended_streams) {
        struct stream *stream = streams->ended_streams;

        streams->ended_streams = stream->next;
        stream_free(streams, stream);
    }
    while (streams->ended_uplinks) {
        struct uplink *uplink = streams->ended_uplinks;

        streams->ended_uplinks = uplink->next;
        uplink_free(uplink);
    }
    while (streams->ended_downstreams) {
        struct downstream *downstream = streams->ended_downstreams;

        streams->ended_downstreams = downstream->next;
        free(downstream);
    }
}

static void turn_ends(struct task *task)
{
    free_ended(OWNER(task, struct streams, turn_ends));
}

bool streams_open(struct worker *worker, const struct limits *limits)
{
    struct streams *streams = calloc(1, sizeof *streams);

    if (!streams || !tracer_open(&streams->tracer)) {
        free(streams);
        return false;
    }
    streams->worker = worker;
    streams->limits = limits;
    streams->blocks.most = MOST_BUFFERED;
    streams->shares.most_streams = MOST_STREAMS;
    streams->turn_ends.run = turn_ends;
    worker->streams = streams;
    loop_add_each_turn(&worker->loop, &streams->turn_ends);
    return true;
}

static void look_at_pools(struct map *pools)
{
    for (size_t i = 0; i < pools->bucket_count; i++)
        for (struct map_entry *entry = pools->buckets[i]; entry; entry = entry->next)
            pool_look(OWNER(entry, struct pool, entry));
}

static void share_pools(struct map *pools)
{
    for (size_t i = 0; i < pools->bucket_count; i++)
        for (struct map_entry *entry = pools->buckets[i]; entry; entry = entry->next)
            pool_share(OWNER(entry, struct pool, entry));
}

/* The map shrinks while it is emptied. */
static void close_pools(struct map *pools)
{
    for (size_t i = 0; pools->count > 0; i++) {
        struct map_entry *entry = pools->buckets[i & (pools->bucket_count - 1)];

        if (entry)
            pool_close(OWNER(entry, struct pool, entry));
    }
}

void streams_look(struct worker *worker)
{
    struct streams *streams = worker->streams;
    uint64_t generation = router_generation(worker);

    if (atomic_exchange_explicit(&streams->starved, false, memory_order_relaxed))
        share_pools(&streams->pools);
    if (generation != streams->generation) {
        streams->generation = generation;
        look_at_pools(&streams->pools);
        streams_ask_again(streams);
    }
    if (!atomic_load_explicit(&worker->listeners->draining, memory_order_relaxed))
        return;
    for (struct downstream *downstream = streams->downstreams, *next; downstream;
         downstream = next) {
        next = downstream->next;
        downstream_drain(downstream);
    }
}

void streams_close(struct worker *worker)
{
    struct streams *streams = worker->streams;

    if (!streams)
        return;
    assert(streams->shares.streams == 0);
    shadows_close(worker);
    close_pools(&streams->pools);
    free_ended(streams);
    while (streams->spare_streams) {
        struct stream *stream = streams->spare_streams;

        streams->spare_streams = stream->next;
        free(stream);
    }
    tracer_close(&streams->tracer);
    http2_free_spares(streams);
    blocks_close(&streams->blocks);
    map_close(&streams->pools);
    free(streams);
    worker->streams = NULL;
}
