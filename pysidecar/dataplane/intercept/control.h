/* Sessions that the connect hook requests: one request on a connection of the control socket, with
 * the application's own socket (see contract.h). */
#ifndef PYSIDECAR_INTERCEPT_CONTROL_H
#define PYSIDECAR_INTERCEPT_CONTROL_H

#include "intercept/session.h"

/* session->intercepted, until the application's socket is connected to us. */
struct request {
    struct worker *worker;
    struct session *session; /* NULL when out of memory */
    struct watch control;    /* the connection of the control socket, until answered */
    int application;         /* our copy of the application's socket; -1 if we have none any more */
    uint32_t uid;
    struct mosnhook_address source, park; /* of the application's socket, if it is parked */
    bool asked;                           /* it asked already whether it may connect itself */
    bool waits;                           /* the caller waits for an answer */
    uint8_t refused; /* enum dp_end: why, if it was accepted only to be refused */
    bool parked;     /* the application's socket is in SYN_SENT, see intercept/park.h */
};

extern const struct intercept intercept_control;

/* Answers the request. False if the caller no longer waits. Never both, see mosnhook_request. */
bool control_answer(const struct request *request, const struct mosnhook_answer *answer);
/* The application's socket is connected to session->downstream: ends the request. */
void control_completed(struct session *session);

/* The application that asked may connect itself: closes our copy of its socket. Call before the
 * answer: while we have a copy, the application's close is no close. */
void control_let_go(struct request *request);
/* The application has its answer: the request is over. */
void control_end(struct session *session);
/* It may not connect itself: waits for an ordinary request on the same connection. */
void control_await_request(struct session *session);

#endif
