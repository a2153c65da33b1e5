/* The sessions as the control thread knows them: those that are live, and those that closed and are
 * to be reported. */
#ifndef PYSIDECAR_API_INBOX_H
#define PYSIDECAR_API_INBOX_H

#include <pthread.h>

#include "api/dataplane.h"
#include "intercept/session.h"

struct inbox {
    int event;   /* an eventfd that calls the control thread */
    bool joined; /* the workers are gone */
    _Atomic uint64_t next_id;
    /* Stacks to which any worker pushes. */
    _Atomic(struct session *) opened, closed;
    atomic_size_t unreported;
    /* The control thread's own; a worker has them under the lock when it drops reports. */
    pthread_mutex_t lock;
    struct session *to_report, **to_report_tail, *live;
    size_t live_count;
    struct dp_dropped dropped;
    struct dp_walk *walks;
};

void inbox_init(struct inbox *inbox, int event);
/* Frees what nobody took; walks have nothing to walk over any more. */
void inbox_close(struct inbox *inbox);
/* See session_handler. */
void inbox_opened(struct inbox *inbox, struct session *session);
/* Hands the sessions that closed in this turn to the control thread. */
void inbox_hand_over(struct inbox *inbox, struct worker *worker);

/* The following are for the control thread: see dataplane.h. */

void inbox_take_opened(struct inbox *inbox);
size_t inbox_take_closed(struct inbox *inbox, struct dp_record *records, size_t max);
void inbox_take_dropped(struct inbox *inbox, struct dp_dropped *dropped);
size_t inbox_snapshot(struct inbox *inbox, struct dp_record *records, size_t max);
size_t inbox_count_passing(struct inbox *inbox);
struct dp_walk *inbox_walk(struct inbox *inbox);

#endif
