/* Sockets that cannot be parked (MPTCP knows no simultaneous open; see contract.h). The application
 * connects its socket itself, to a listener that is there for this connection alone: we would have
 * to wait in its connect(). For a caller that waits the upstream is connected first, so that it
 * learns the true errno. */
#ifndef PYSIDECAR_INTERCEPT_UNPARKED_H
#define PYSIDECAR_INTERCEPT_UNPARKED_H

#include "intercept/control.h"

/* A request whose socket is neither parked nor connected. */
void unparked_start(struct session *session, struct request *request);
/* Lets the application connect it to us: SESSION_COMPLETING, or SESSION_EXPECTED. */
void unparked_await(struct session *session, struct request *request);

#endif
