/* Sockets that cannot be parked (MPTCP knows no simultaneous open; see contract.h). The application
 * connects its socket itself, to a listener that is opened for this connection alone; for us to
 * connect it would be to wait in its connect(). If the caller waits, the upstream is connected
 * first, so that the caller learns the true errno. */
#ifndef PYSIDECAR_INTERCEPT_UNPARKED_H
#define PYSIDECAR_INTERCEPT_UNPARKED_H

#include "intercept/control.h"

/* Begins with a request whose socket is neither parked nor connected. */
void unparked_start(struct session *session, struct request *request);
/* Lets the application connect its socket to us: SESSION_COMPLETING, or SESSION_EXPECTED. */
void unparked_await(struct session *session, struct request *request);

#endif
