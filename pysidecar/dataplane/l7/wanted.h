/* Services that requests wait for, since the table does not know them: what workers tell the
 * control thread, which may bring a table that does. Bounded, and nobody waits for it. */
#ifndef PYSIDECAR_L7_WANTED_H
#define PYSIDECAR_L7_WANTED_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/terms.h"

struct wanted_note;

/* Shared by all workers. */
struct wanted {
    _Atomic(struct wanted_note *) notes; /* that were not taken, the newest first */
    atomic_uint count;                   /* of them, and of those in `left` */
    atomic_uint waiting;                 /* requests */
    struct wanted_note *left;            /* the control thread's: taken, but not all of them */
    int event;                           /* an eventfd that calls the control thread */
};

/* In any thread. False: too much is told already, or out of memory. */
bool wanted_tell(struct wanted *wanted, const struct dp_wanted *what);
/* One request more waits. False: too many do. */
bool wanted_enter(struct wanted *wanted);
void wanted_leave(struct wanted *wanted);

/* The control thread's: stores at most `max`, each once. Returns how many; 0: there are no more. */
size_t wanted_take(struct wanted *wanted, struct dp_wanted *what, size_t max);
/* When no worker runs any more. */
void wanted_close(struct wanted *wanted);

#endif
