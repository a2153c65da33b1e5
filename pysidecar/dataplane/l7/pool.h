/* The upstream connections of a worker to one endpoint, for one protocol: bounded, kept for the
 * next request, and closed when idle for long. */
#ifndef PYSIDECAR_L7_POOL_H
#define PYSIDECAR_L7_POOL_H

#include "l7/codec.h"
#include "l7/stream.h"
#include "loop/task.h"
#include "upstream/origin.h"
#include "upstream/service.h"

struct uplink;

struct pool {
    struct map_entry entry;
    struct worker *worker;
    const struct codec *codec;
    struct service *service;   /* as it was when a request came last; NULL: none */
    struct cluster *cluster;   /* of a route's endpoint; NULL: none. Both are referenced */
    struct endpoint *endpoint; /* NULL: the address is an original destination */
    struct downstream *owner;  /* as in the key; NULL also when that has ended */
    struct mosnhook_address address;
    struct dp_listener settings; /* of the sockets */
    struct origin origin;        /* for the connector */
    struct uplink *ready; /* those that may take a request, the one that was used last first */
    struct uplink *busy;  /* those that are being connected, or have a request (and no room for
                           * another one) */
    uint32_t uplink_count, connecting;
    struct stream *waiting, **last_waiting;
    uint32_t waiting_count;
    bool starved;       /* it has no connection, and may open none: see struct standing */
    struct task serve;  /* those that wait */
    struct timer timer; /* to look at what is idle */
};

/* Where a request goes. */
struct pool_key {
    struct service *service;
    struct cluster *cluster;
    struct endpoint *endpoint;
    /* The only one whose requests it takes, and with which it ends: a client of HTTP/2 and its
     * original destination. NULL: everybody's. */
    struct downstream *owner;
    struct mosnhook_address address;
    /* The client came to an address of this host, and the endpoint is at the same one: it is the
     * application, or beside it. */
    bool is_here;
    const struct dp_listener *listener;
    const struct codec *codec;
};

/* Whether the requests of many connections take turns on its uplinks. To an original destination,
 * each connection of HTTP/1.1 has an uplink of its own, and closes it with itself: a server may
 * serve one connection after the other, or end when its clients have. One of HTTP/2 has a pool of
 * its own for the same reason. */
static inline bool pool_is_shared(const struct pool *pool)
{
    return pool->endpoint || pool->codec->multiplexes;
}

/* The worker's pool for it; NULL when out of memory. */
struct pool *pool_find(struct worker *worker, const struct pool_key *key);
/* Gives the stream an uplink, now or later: see stream_assigned and stream_unassigned. */
void pool_request(struct pool *pool, struct stream *stream);
/* The stream does not want one any more. */
void pool_leave(struct pool *pool, struct stream *stream);
/* An uplink can take a request (again), or is gone: those that wait get their turn. */
void pool_serve(struct pool *pool);
/* The connect of an uplink failed. */
void pool_connect_failed(struct pool *pool, int error);
/* Its owner ends, with no request under way: so do its uplinks. */
void pool_desert(struct pool *pool, bool reset);
/* Closes idle uplinks: they may be dead, as another one was. */
void pool_renew(struct pool *pool);
/* An uplink of it was opened (1) or closed (-1). */
void pool_count(struct pool *pool, int change);
/* Whether another pool of its service waits for a connection, and cannot have one. */
bool pool_is_wanted(const struct pool *pool);
/* Some pool is starved: this one tries again if it is the one, else it gives a connection. */
void pool_share(struct pool *pool);
/* Closes what is idle for long, or not wanted any more. */
void pool_look(struct pool *pool);
/* Closes and frees all of it, with no request under way. */
void pool_close(struct pool *pool);

#endif
