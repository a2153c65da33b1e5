/* Serves a session by leaving it to the application: route action `direct`. The application
 * connects itself, to an endpoint that we choose. Nothing of ours is in the way of the bytes, not
 * even a descriptor: a copy of the application's socket would hold its close back from the peer.
 * The kernel reports what became of a connection when it frees the socket, which we know by its
 * cookie.
 *
 * A worker has the direct connections that it was asked about. It listens to the kernel while it
 * has any, and a second longer. See docs/paths/direct.md. */
#ifndef PYSIDECAR_L4_DIRECT_H
#define PYSIDECAR_L4_DIRECT_H

#include "intercept/session.h"
#include "upstream/choice.h"

/* A worker's part; NULL when out of memory. `workers`: all of them, as each may have had a socket
 * before. */
struct direct *direct_create(struct worker *worker, struct worker *workers, uint32_t worker_count);
void direct_destroy(struct worker *worker);
/* The application asks whether it may connect itself, see intercept/control.h. */
void direct_ask(struct session *session);
/* Ends the earlier connections of sockets that other workers were asked about since. */
void direct_take_reused(struct worker *worker);

/* The following are for the control thread. */

/* Asks the kernel about the direct ones among the sessions from `first` on (session.live_next). */
void direct_look(struct session *first);
/* Source and bytes of such a session, as last seen. */
void direct_last_seen(const struct session *session, struct mosnhook_address *source,
                      uint64_t *sent, uint64_t *received);
/* See dp_direct_works. */
int direct_works(void);

#endif
