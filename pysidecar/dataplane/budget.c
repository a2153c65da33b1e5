/* File descriptors: how many there are for connections and pipes, and what is said when they are
 * used up. */
#include <unistd.h>

#include "internal.h"

bool fds_reserve(struct dp *dp, int count)
{
    int before = atomic_fetch_add_explicit(&dp->fds_reserved, count, memory_order_relaxed);

    if (before + count + reapers_pending(dp->reapers) <= dp->fds_budget)
        return true;
    fds_release(dp, count);
    return false;
}

void fds_release(struct dp *dp, int count)
{
    atomic_fetch_sub_explicit(&dp->fds_reserved, count, memory_order_relaxed);
}

int fds_used(const struct dp *dp)
{
    return atomic_load_explicit(&dp->fds_reserved, memory_order_relaxed) +
           reapers_pending(dp->reapers);
}

void fds_ran_out(struct dp *dp, uint64_t now_ms)
{
    atomic_store_explicit(&dp->full_until_ms, now_ms + REFUSE_AFTER_MS, memory_order_relaxed);
}

/* So many are left when the page begins to say that we are full: for requests on their way. */
static int fds_kept(const struct dp *dp)
{
    int kept = dp->fds_budget / 32;

    if (kept < 2 * FDS_PER_REQUEST)
        kept = 2 * FDS_PER_REQUEST;
    return kept < dp->fds_budget / 4 ? kept : dp->fds_budget / 4;
}

static void set_full(struct dp *dp, bool full)
{
    uint64_t one = 1;

    if (atomic_exchange(&dp->full, full) == full)
        return;
    /* Another worker may be here, too: the last word is that of `full`. */
    do {
        full = atomic_load(&dp->full);
        if (dp->page)
            __atomic_store_n(&dp->page->full, full, __ATOMIC_SEQ_CST);
    } while (full != atomic_load(&dp->full));
    if (write(dp->event, &one, sizeof one) < 0)
        return; /* at its limit it is readable all the same */
}

bool fds_look(struct dp *dp, uint64_t now_ms)
{
    int free = dp->fds_budget - fds_used(dp);
    bool refused = now_ms < atomic_load_explicit(&dp->full_until_ms, memory_order_relaxed);
    bool full = atomic_load_explicit(&dp->full, memory_order_relaxed);

    if (!full && (refused || free < fds_kept(dp)))
        set_full(dp, true);
    else if (full && !refused && free >= 2 * fds_kept(dp))
        set_full(dp, false);
    return full;
}
