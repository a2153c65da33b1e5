/* File descriptors: how many there are for connections and pipes, and what is said when they are
 * used up. */
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
    FDS_TO_REFUSE = 5,   /* of a worker, for a request that gets no others: what may come with it */
    REFUSE_AFTER_MS = 1000, /* how long a connection waits for descriptors */
};

struct budget {
    int limit;                     /* the process's */
    int most;                      /* for connections and pipes */
    const struct foreign *foreign; /* what is not closed yet counts too */
    struct mosnhook_page *page;    /* that says when they are used up; or NULL */
    int event;                     /* an eventfd that is told, too */
    atomic_int reserved;
    atomic_bool full;               /* new connections had better not come */
    _Atomic uint64_t full_until_ms; /* at least */
};

/* Sets limit and most by what the process may have, and has open. False when there are too few. */
bool budget_measure(struct budget *budget, int spare);
/* False when there are not enough. */
bool budget_reserve(struct budget *budget, int count);
/* The same for what can be done without: an eighth is kept for the others. */
bool budget_reserve_spare(struct budget *budget, int count);
void budget_release(struct budget *budget, int count);
/* Those that connections and pipes have, or may need. */
int budget_used(const struct budget *budget);
/* The process or the host has no more, whatever the budget says. */
void budget_ran_out(struct budget *budget, uint64_t now_ms);
/* Says it when they are used up, or no longer are. True while they are. */
bool budget_look(struct budget *budget, uint64_t now_ms);

#endif
