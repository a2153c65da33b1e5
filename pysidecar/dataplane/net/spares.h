/* Descriptors that a worker keeps open for nothing, so that it can give them up for connections
 * that are refused: to accept and answer them takes some, when there are no others any more. */
#ifndef PYSIDECAR_NET_SPARES_H
#define PYSIDECAR_NET_SPARES_H

#include "loop/worker.h"
#include "net/budget.h"

/* Zero: it has none yet. */
struct spares {
    int fds[FDS_TO_REFUSE]; /* one more than each; 0: none */
    bool given_up;          /* some of them, or all */
};

/* Opens those that the worker does not have, as far as there are descriptors for them. */
void spares_keep(struct worker *worker);
/* Closes them all. False if there were none. */
bool spares_give_up(struct worker *worker);

#endif
