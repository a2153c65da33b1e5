/* Sharing out accepted connections. The kernel wakes any worker, so the one that has accepted a
 * connection hands it to the worker with the fewest, before anything is read. */
#ifndef PYSIDECAR_INTERCEPT_HANDOVER_H
#define PYSIDECAR_INTERCEPT_HANDOVER_H

#include "intercept/listener.h"

/* Before any worker runs. False when out of memory. */
bool handover_open(struct worker *worker);
/* No worker may run any more. */
void handover_close(struct worker *worker);

/* Hands the connection, with its reserved descriptors, to a worker with clearly fewer connections.
 * False if it stays the caller's. */
bool handover_give(struct worker *worker, const struct listener *listener, int fd);
/* Serves the connections that others have handed to the worker. */
void handover_take(struct worker *worker);

/* Connections that the worker has, or is about to get. From any thread. */
uint64_t handover_load(const struct worker *worker);
/* Connections that were handed to the worker and not taken yet. */
unsigned handover_pending(const struct worker *worker);

#endif
