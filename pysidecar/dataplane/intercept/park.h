/* Applications' sockets that wait in SYN_SENT for their upstream (see contract.h).
 *
 * An application's socket S is connected to a park, a listener that drops every SYN. To complete S,
 * a socket that is bound to the park's address connects to S: the crossed SYNs establish both
 * (simultaneous open, RFC 9293 figure 7). To fail S, we begin the same, but reset S before it is
 * established. The application finds ECONNRESET, of which the hook makes the true errno. */
#ifndef PYSIDECAR_INTERCEPT_PARK_H
#define PYSIDECAR_INTERCEPT_PARK_H

#include "intercept/control.h"

struct park {
    struct mosnhook_address address;
    int listener;
    int filler; /* fills its accept queue; -1 where a filter drops SYNs */
};

/* Shared by all workers. Does not change while they run. */
struct parks {
    struct park each[MOSNHOOK_MAX_PARKS];
    size_t count;
};

/* Opens a park on `address`, whose port is ignored, and stores the park's address there. 0 or
 * -errno. */
int parks_add(struct parks *parks, struct mosnhook_address *address);
void parks_close(struct parks *parks);
/* See dp_parking_works. */
int park_works(const struct mosnhook_address *address);

/* Whether the application's socket is parked at one of our parks. Notes its source and park. */
bool park_inspect(struct request *request);
/* Connects the application's parked socket to us: SESSION_COMPLETING. */
void park_complete(struct session *session, struct request *request);
/* As intercept_ops.refuse. */
bool park_fail(struct session *session, struct request *request, int error);
/* The request is about to be closed, for whatever reason: makes its socket fail at once if it is
 * still parked at one of ours, even if its message was never understood. `destination` is what the
 * application was connecting to; NULL if unknown. */
void park_abandon(struct request *request, int error, const struct mosnhook_address *destination);

#endif
