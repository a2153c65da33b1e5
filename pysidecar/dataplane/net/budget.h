/* The budget of file descriptors: how many connections and pipes may have, and who is told when
 * they are used up. */
#ifndef PYSIDECAR_NET_BUDGET_H
#define PYSIDECAR_NET_BUDGET_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "contract.h"

struct foreign;

enum {
    FDS_PER_REQUEST = 4, /* control socket, the application's socket, upstream, downstream */
    FDS_PER_RELAY = 2,   /* downstream, upstream */
    FDS_TO_REFUSE = 5,   /* of a worker, for a request that is refused for lack of descriptors: what
                            may come with it */
    REFUSE_AFTER_MS = 1000, /* how long a connection waits for descriptors at most */
};

struct budget {
    int limit;                     /* the process's */
    int most;                      /* the budget: for connections and pipes */
    const struct foreign *foreign; /* what waits to be closed counts, too */
    struct mosnhook_page *page;    /* says when they are used up; NULL if there is none */
    int event;                     /* an eventfd that is signalled, too */
    atomic_int reserved;
    atomic_bool full;               /* as the page says: new connections had better not come */
    _Atomic uint64_t full_until_ms; /* `full` until then at least */
};

/* Sets `limit` and `most` by what the process may have and has open. False when there are too few.
 */
bool budget_measure(struct budget *budget, int spare);
/* False when there are not enough left. */
bool budget_reserve(struct budget *budget, int count);
/* The same for what a connection can do without: an eighth of the budget is kept for others. */
bool budget_reserve_spare(struct budget *budget, int count);
void budget_release(struct budget *budget, int count);
/* Descriptors that connections and pipes have, or may need. */
int budget_used(const struct budget *budget);
/* Notes that the process or the host has no more, whatever the budget says. */
void budget_ran_out(struct budget *budget, uint64_t now_ms);
/* Tells page and event when the budget is used up, or no longer is. True while it is. */
bool budget_look(struct budget *budget, uint64_t now_ms);

#endif
