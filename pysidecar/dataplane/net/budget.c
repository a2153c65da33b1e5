#include "net/budget.h"

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include "net/foreign.h"

static int open_fds(void)
{
    DIR *directory = opendir("/proc/self/fd");
    int count = 0;

    if (!directory)
        return 256;
    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

bool budget_measure(struct budget *budget, int spare)
{
    struct rlimit limit;

    getrlimit(RLIMIT_NOFILE, &limit);
    budget->limit = (int)(limit.rlim_cur > INT32_MAX ? INT32_MAX : limit.rlim_cur);
    budget->most = budget->limit - open_fds() - spare;
    return budget->most >= FDS_PER_REQUEST;
}

static bool reserve(struct budget *budget, int count, int most)
{
    int before = atomic_fetch_add_explicit(&budget->reserved, count, memory_order_relaxed);

    if (before + count + foreign_pending(budget->foreign) <= most)
        return true;
    budget_release(budget, count);
    return false;
}

bool budget_reserve(struct budget *budget, int count)
{
    return reserve(budget, count, budget->most);
}

bool budget_reserve_spare(struct budget *budget, int count)
{
    return reserve(budget, count, budget->most / 8 * 7);
}

void budget_release(struct budget *budget, int count)
{
    atomic_fetch_sub_explicit(&budget->reserved, count, memory_order_relaxed);
}

int budget_used(const struct budget *budget)
{
    return atomic_load_explicit(&budget->reserved, memory_order_relaxed) +
           foreign_pending(budget->foreign);
}

void budget_ran_out(struct budget *budget, uint64_t now_ms)
{
    atomic_store_explicit(&budget->full_until_ms, now_ms + REFUSE_AFTER_MS, memory_order_relaxed);
}

/* So many are left when the page begins to say that we are full: for requests on their way. */
static int kept(const struct budget *budget)
{
    int kept = budget->most / 32;

    if (kept < 2 * FDS_PER_REQUEST)
        kept = 2 * FDS_PER_REQUEST;
    return kept < budget->most / 4 ? kept : budget->most / 4;
}

static void set_full(struct budget *budget, bool full)
{
    uint64_t one = 1;

    if (atomic_exchange(&budget->full, full) == full)
        return;
    /* Another worker may be here, too: the last word is that of `full`. */
    do {
        full = atomic_load(&budget->full);
        if (budget->page)
            __atomic_store_n(&budget->page->full, full, __ATOMIC_SEQ_CST);
    } while (full != atomic_load(&budget->full));
    if (write(budget->event, &one, sizeof one) < 0)
        return; /* at its limit it is readable all the same */
}

bool budget_look(struct budget *budget, uint64_t now_ms)
{
    int free = budget->most - budget_used(budget);
    bool refused = now_ms < atomic_load_explicit(&budget->full_until_ms, memory_order_relaxed);
    bool full = atomic_load_explicit(&budget->full, memory_order_relaxed);

    if (!full && (refused || free < kept(budget)))
        set_full(budget, true);
    else if (full && !refused && free >= 2 * kept(budget))
        set_full(budget, false);
    return atomic_load_explicit(&budget->full, memory_order_relaxed);
}
