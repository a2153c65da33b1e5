/* The short cut through the kernel: what the application sends goes to the upstream's socket, and
 * what we send goes into the application's receive queue, without another trip through TCP (see
 * bpf/accelerate.bpf.c for order and flow control, docs/acceleration.md for the whole).
 *
 * A tunnel is attached when its traffic shows that this pays. Nothing else changes for it: what the
 * programs do not redirect still comes by TCP and is relayed, at any time. */
#ifndef PYSIDECAR_L4_SOCKMAP_H
#define PYSIDECAR_L4_SOCKMAP_H

#include "l4/tunnel.h"

/* A worker's part: the tunnels whose receivers are behind. NULL when out of memory. */
struct sockmap *sockmap_create(struct worker *worker);
void sockmap_destroy(struct worker *worker);
/* Prepares the application's socket, while we have it, for a session that may be accelerated. */
void sockmap_prepare(struct session *session, int application);
/* Flow ops that watch whether acceleration pays for the tunnel; NULL if it cannot be accelerated.
 */
const struct flow_ops *sockmap_ops(const struct tunnel *tunnel);

#endif
