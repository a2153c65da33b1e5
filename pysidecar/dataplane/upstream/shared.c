#include "upstream/shared.h"

#include <stdbool.h>
#include <stdint.h>
#include <unistd.h>

#include "base/stack.h"

void shared_init(struct shared *shared, struct keeper *keeper, void (*destroy)(struct shared *))
{
    atomic_init(&shared->references, 1);
    shared->next_returned = NULL;
    shared->keeper = keeper;
    shared->destroy = destroy;
}

void shared_reference(struct shared *shared)
{
    atomic_fetch_add_explicit(&shared->references, 1, memory_order_relaxed);
}

/* False if it is the last one. */
static bool release_one_of_several(struct shared *shared)
{
    size_t references = atomic_load_explicit(&shared->references, memory_order_acquire);

    while (references > 1)
        if (atomic_compare_exchange_weak_explicit(&shared->references, &references, references - 1,
                                                  memory_order_acq_rel, memory_order_acquire))
            return true;
    return false;
}

void shared_release(struct shared *shared)
{
    struct keeper *keeper = shared->keeper;
    struct shared *before;
    uint64_t one = 1;

    if (release_one_of_several(shared))
        return;
    /* Nobody but the keeper's thread can reference it again. And it stays one reference above zero
     * until that thread has taken it from the stack: so it is pushed only once. */
    STACK_PUSH_CHAIN(&keeper->returned, shared, shared, next_returned, &before);
    /* From here on the object may be gone. */
    if (!before && keeper->event >= 0 && write(keeper->event, &one, sizeof one) < 0)
        return; /* at its limit it is readable all the same */
}

void keeper_release(struct shared *shared)
{
    if (atomic_fetch_sub_explicit(&shared->references, 1, memory_order_acq_rel) == 1)
        shared->destroy(shared);
}

void keeper_collect(struct keeper *keeper)
{
    struct shared *shared = NULL, *next;

    if (atomic_load_explicit(&keeper->returned, memory_order_relaxed))
        shared = STACK_TAKE(&keeper->returned);
    for (; shared; shared = next) {
        next = shared->next_returned;
        keeper_release(shared);
    }
}
