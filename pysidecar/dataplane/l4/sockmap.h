/* The short cut through the kernel: what the application sends goes to the upstream's socket, and
 * what we send it goes into its receive queue, without another trip through TCP (see
 * bpf/accelerate.bpf.c for order and flow control).
 *
 * A tunnel is attached when its traffic shows that this pays. Nothing else changes for it: what the
 * programs do not redirect still comes by TCP and is relayed, now or later in its life. */
#ifndef PYSIDECAR_L4_SOCKMAP_H
#define PYSIDECAR_L4_SOCKMAP_H

#include "l4/tunnel.h"

/* A worker's part: those whose receivers are behind. NULL when out of memory. */
struct sockmap *sockmap_create(struct worker *worker);
void sockmap_destroy(struct worker *worker);
/* The application's own socket is still in our hands: a session may come to be accelerated. */
void sockmap_prepare(struct session *session, int application);
/* What watches whether it pays for the tunnel; NULL: it is not of the kind that can be accelerated.
 */
const struct flow_ops *sockmap_ops(const struct tunnel *tunnel);

#endif
