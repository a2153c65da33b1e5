/* Serves a session by moving bytes, whatever they are, between it and an upstream. */
#ifndef PYSIDECAR_L4_TUNNEL_H
#define PYSIDECAR_L4_TUNNEL_H

#include "intercept/session.h"
#include "l4/flow.h"
#include "upstream/choice.h"

struct attempt;

struct tunnel {
    struct session *session;
    struct channel upstream;
    struct flow flow[2];
    struct task task;           /* to go on after its batch */
    const struct flow_ops *ops; /* what stands beside the flows; NULL: nothing */
    union {
        struct attempt *attempt; /* while the upstream is being connected */
        void *extra;             /* afterwards: `ops`'s own */
    };
    struct cluster *cluster; /* of the endpoint; NULL if the route has none */
    struct endpoint *endpoint;
    uint64_t last_active_ms;
    uint32_t round_trips;
    uint8_t last_read; /* the side: DOWNSTREAM or UPSTREAM */
};

/* Connects the upstream of a session that has arrived, or is served already. */
void tunnel_start(struct session *session, const struct choice *choice);
/* For a session that is served, and has its upstream: one that is not its own yet. NULL when out of
 * memory. The caller may give its flows what they pass on first, see flow_hold. */
struct tunnel *tunnel_create(struct session *session);
/* Such a one serves the session from here on. Takes over the descriptor of the upstream. */
void tunnel_adopt(struct tunnel *tunnel, int fd);
/* Or it does not. */
void tunnel_free(struct tunnel *tunnel);
/* Calls ops->tick in so many ms. */
void tunnel_tick_in(struct tunnel *tunnel, uint64_t ms);
/* Runs the flows again, in this turn of the loop or the next. */
void tunnel_go_on(struct tunnel *tunnel);

static inline struct worker *tunnel_worker(const struct tunnel *tunnel)
{
    return tunnel->session->worker;
}

static inline struct channel *tunnel_side(struct tunnel *tunnel, int side)
{
    return side == DOWNSTREAM ? &tunnel->session->downstream : &tunnel->upstream;
}

#endif
