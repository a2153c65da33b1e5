/* What the control thread learns of a worker's sessions: those that are open, and reports of those
 * that closed, and of their requests.
 *
 * An opened session is pushed to a stack. Under the inbox's lock it moves from there to the list,
 * and leaves that when it is freed. The control thread waits for the lock; the worker never does,
 * and frees what closed in a later turn. */
#ifndef PYSIDECAR_API_INBOX_H
#define PYSIDECAR_API_INBOX_H

#include <pthread.h>

#include "api/report.h"
#include "api/requests.h"
#include "intercept/session.h"

/* A worker's. */
struct inbox {
    struct inboxes *all;
    unsigned index;
    struct report report;
    struct requests requests;
    struct ring spans; /* of requests that were sampled */
    _Atomic(struct session *) opened;
    pthread_mutex_t lock;
    struct session *live; /* under the lock */
};

/* What those of all workers share. */
struct inboxes {
    struct inbox **each;
    uint32_t count;
    _Atomic uint64_t next_id;
    struct reports reports;
    struct dp_walk *walks; /* changed under the locks of all */
};

/* 0 or -errno. Also after a failure it is to be closed. */
int inbox_open(struct inbox *inbox, struct inboxes *all, unsigned index);
void inbox_close(struct inbox *inbox);

/* See session_handler. */
void inbox_opened(struct inbox *inbox, struct session *session);
void inbox_decided(struct inbox *inbox, struct session *session, enum dp_action action);
void inbox_closed(struct inbox *inbox, const struct session *session);
void inbox_request_ended(struct inbox *inbox, const struct dp_request *request,
                         struct standing *standing, struct endpoint *endpoint);
void inbox_span_ended(struct inbox *inbox, const struct dp_span *span);
/* At the end of a turn: tells the control thread what is new, and frees what closed. */
void inbox_end_turn(struct inbox *inbox, struct worker *worker);

/* The following are for the control thread: see dataplane.h. */

/* Completes the lists of open sessions, and asks the kernel about the direct ones in them. */
void inboxes_look(struct inboxes *all);
size_t inboxes_snapshot(struct inboxes *all, struct dp_record *records, size_t max);
struct dp_walk *inboxes_walk(struct inboxes *all);
/* Walks have nothing to walk over any more. */
void inboxes_leave_walks(struct inboxes *all);
void inboxes_read_tallies(const struct inboxes *all, struct dp_tallies *tallies);
/* How many sessions are open, direct ones or not. */
size_t inboxes_count_open(const struct inboxes *all, bool direct);

#endif
