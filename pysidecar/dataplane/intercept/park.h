/* Sockets of applications that wait in SYN_SENT for their upstream (see contract.h).
 *
 * An application's socket S is connected to a park: a listener that drops every SYN. To complete S,
 * a socket bound to the same address connects to S: the crossed SYNs establish both (simultaneous
 * open, RFC 9293 figure 7). To fail S, the same is begun, but S is reset before it is established.
 * That leaves ECONNRESET for the application to find; the hook makes the true errno of it. */
#ifndef PYSIDECAR_INTERCEPT_PARK_H
#define PYSIDECAR_INTERCEPT_PARK_H

#include "intercept/control.h"

struct park {
    struct mosnhook_address address;
    int listener;
    int filler; /* of its accept queue; -1: not needed */
};

/* Shared by all workers; does not change while they run. */
struct parks {
    struct park each[MOSNHOOK_MAX_PARKS];
    size_t count;
};

/* Opens a park on `address` (its port is ignored), and stores where it is. 0 or -errno. */
int parks_add(struct parks *parks, struct mosnhook_address *address);
void parks_close(struct parks *parks);
/* See dp_parking_works. */
int park_works(const struct mosnhook_address *address);

/* Whether the application's socket is parked at one of ours; notes its source and park. */
bool park_inspect(struct request *request);
/* Connects the parked socket of the application to us: SESSION_COMPLETING. */
void park_complete(struct session *session, struct request *request);
/* As intercept_ops.refuse. */
bool park_fail(struct session *session, struct request *request, int error);
/* Before the request is closed, for whatever reason: makes its socket fail at once if it is still
 * parked at one of ours, even if its message was never understood. The destination is what the
 * application is told that it was connecting to; NULL: it is not known. */
void park_abandon(struct request *request, int error, const struct mosnhook_address *destination);

#endif
