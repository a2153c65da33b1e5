/* What a worker has for requests. */
#ifndef PYSIDECAR_L7_STREAMS_H
#define PYSIDECAR_L7_STREAMS_H

#include <stdatomic.h>

#include "base/map.h"
#include "l7/buffer.h"
#include "l7/codec.h"
#include "l7/http2_memory.h"
#include "l7/share.h"
#include "l7/tracer.h"
#include "loop/worker.h"

struct downstream;
struct http2_stream;
struct shadows;
struct stream;
struct uplink;

struct streams {
    struct worker *worker;
    const struct limits *limits;
    struct blocks blocks;
    struct shares shares;
    struct map pools;
    atomic_bool starved; /* others wait for a connection that a pool may have, see pool_share */
    uint64_t real_of_ns, real_ns;   /* a turn's now_ns, and what CLOCK_REALTIME was then */
    uint64_t generation;            /* of the table that pools were compared with last */
    struct downstream *downstreams; /* open ones */
    struct stream *wanting;         /* those that wait for a service that the table does not know */
    unsigned wanting_count;
    struct shadows *shadows; /* see shadow.h */
    unsigned copy_count;     /* streams that are copies for mirrors */
    unsigned held_count;     /* those that faults hold */
    struct tracer tracer;
    struct stream *spare_streams;
    unsigned spare_count;
    struct http2_memory http2_memory;
    struct http2_stream *spare_http2;
    unsigned spare_http2_count;
    struct stream *ended_streams; /* in this turn: freed at its end */
    struct uplink *ended_uplinks; /* likewise */
    struct downstream *ended_downstreams;
    struct task turn_ends;
};

/* False when out of memory. */
bool streams_open(struct worker *worker, const struct limits *limits);
/* When all sessions are closed. */
void streams_close(struct worker *worker);
/* Something may have changed that is not the worker's: the table, or it is to drain. */
void streams_look(struct worker *worker);

#endif
