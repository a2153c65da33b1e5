/* The short cut through the kernel: what the application sends goes to the upstream's socket, and
 * what we send goes into the application's receive queue, without another trip through TCP (see
 * bpf/accelerate.bpf.c for order and flow control, docs/acceleration.md for the whole).
 *
 * A session is attached when its traffic shows that this pays. Nothing else changes for it: what
 * the programs do not redirect still comes by TCP and is relayed, at any time.
 *
 * A tunnel is accelerated by what stands beside its flows. Whoever else serves a session has no
 * upstream for the whole of it: then the application's data goes to our downstream socket (path
 * `local`), and the short cut is the transport of the session's downstream channel. */
#ifndef PYSIDECAR_L4_SOCKMAP_H
#define PYSIDECAR_L4_SOCKMAP_H

#include "l4/tunnel.h"

/* A worker's part: the sessions whose receivers are behind. NULL when out of memory. */
struct sockmap *sockmap_create(struct worker *worker);
void sockmap_destroy(struct worker *worker);
/* Prepares the application's socket, while we have it, for a session that may be accelerated. */
void sockmap_prepare(struct session *session, int application);
/* Flow ops that watch whether acceleration pays for the tunnel, or go on where the session is
 * accelerated already; NULL if it cannot be. */
const struct flow_ops *sockmap_ops(struct tunnel *tunnel);

enum sockmap_state {
    SOCKMAP_OFF,     /* it is not accelerated, and will not be */
    SOCKMAP_NOT_YET, /* try again when there was more traffic */
    SOCKMAP_ON,      /* the downstream channel's transport is the short cut */
};

/* Whether the session is of a kind for sockmap_try(). */
bool sockmap_is_for(const struct session *session);
/* Accelerates a session that no tunnel serves, if its traffic shows that this pays. Nothing may be
 * on its way between its downstream channel and a pipe. `go_on`: the channel takes bytes again, as
 * an event would tell; called where the session must not be closed. */
enum sockmap_state sockmap_try(struct session *session, uint32_t round_trips,
                               void (*go_on)(struct session *session));
/* For one that is SOCKMAP_ON, SOCKMAP_TICK_MS after that and whenever the last call said, in ms of
 * the loop's clock. UINT64_MAX: it is SOCKMAP_OFF now. */
uint64_t sockmap_tick(struct session *session);

enum { SOCKMAP_TICK_MS = 250 };

#endif
