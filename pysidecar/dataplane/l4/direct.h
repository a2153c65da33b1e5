/* Serves a session by leaving it to the application: route action `direct`. It connects itself, to
 * an endpoint that we choose. Nothing of ours is in the way of the bytes, not even a descriptor: a
 * copy of the application's socket would hold its close back from the peer. What becomes of a
 * connection the kernel reports when it frees the socket, which we know by its cookie.
 *
 * A worker has the direct connections that it was asked for. It listens to the kernel while it has
 * any, and a little longer. */
#ifndef PYSIDECAR_L4_DIRECT_H
#define PYSIDECAR_L4_DIRECT_H

#include "intercept/session.h"
#include "upstream/choice.h"

/* A worker's part; NULL when out of memory. The workers are those that may have had its sockets. */
struct direct *direct_create(struct worker *worker, struct worker *workers, uint32_t worker_count);
void direct_destroy(struct worker *worker);
/* A session asks whether it may go itself, see intercept/control.h. */
void direct_ask(struct session *session);
/* Sockets that other workers were asked for: what they were before has ended. */
void direct_take_reused(struct worker *worker);

/* The following are for the control thread. */

/* Whether the session is left to the application. */
bool direct_is(const struct session *session);
/* Asks the kernel about those among the sessions from `first` on
 * (session.live_next) that are direct. */
void direct_look(struct session *first);
/* What was seen of such a session last. */
void direct_last_seen(const struct session *session, struct mosnhook_address *source,
                      uint64_t *sent, uint64_t *received);
/* See dp_direct_works. */
int direct_works(void);

#endif
