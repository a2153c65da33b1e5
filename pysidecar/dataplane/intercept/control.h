/* Sessions that the connect hook asks for: one request on a connection of the control socket, with
 * the application's own socket (see contract.h). */
#ifndef PYSIDECAR_INTERCEPT_CONTROL_H
#define PYSIDECAR_INTERCEPT_CONTROL_H

#include "intercept/session.h"

/* session->intercepted, until the application's socket is connected to us. */
struct request {
    struct worker *worker;
    struct session *session; /* NULL: there was no memory for one */
    struct watch control;    /* the connection of the control socket, until answered */
    int application;         /* the application's own socket; -1: it is not here any more */
    uint32_t uid;
    struct mosnhook_address source, park; /* of the application's socket, if it is parked */
    bool asked;                           /* once, whether it may go itself */
    bool waits;                           /* for an answer */
    bool parked; /* the application's socket is in SYN_SENT, see intercept/park.h */
};

extern const struct intercept intercept_control;

/* The request's answer. False: the asker waits for it no more. Never both, see mosnhook_request. */
bool control_answer(const struct request *request, const struct mosnhook_answer *answer);
/* The application's socket is connected to session->downstream: nothing else is of interest. */
void control_completed(struct session *session);

/* Of a session that asks whether it may go itself: it may. Before the answer: as long as we have a
 * copy of its socket, a close by the application is no close. */
void control_let_go(struct request *request);
/* It may, and knows it: the request is over. */
void control_end(struct session *session);
/* It may not: an ordinary request follows on the same connection. */
void control_await_request(struct session *session);

#endif
