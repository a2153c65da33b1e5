/* Sharing out accepted connections. The kernel wakes whichever worker it likes, so whoever has
 * accepted a connection hands it to the worker that has the fewest, before anything is read. */
#ifndef PYSIDECAR_INTERCEPT_HANDOVER_H
#define PYSIDECAR_INTERCEPT_HANDOVER_H

#include "intercept/listener.h"

/* Before any worker runs. False when out of memory. */
bool handover_open(struct worker *worker);
/* When none does. */
void handover_close(struct worker *worker);

/* Hands the connection, with the descriptors that are reserved for it, to a worker that has clearly
 * fewer. False: it stays the caller's. */
bool handover_give(struct worker *worker, const struct listener *listener, int fd);
/* Serves what others have handed to the worker. */
void handover_take(struct worker *worker);

/* Connections that the worker has, or is about to get. In any thread. */
uint64_t handover_load(const struct worker *worker);
/* Those that it has not taken yet. */
unsigned handover_pending(const struct worker *worker);

#endif
