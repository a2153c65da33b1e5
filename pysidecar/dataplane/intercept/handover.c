#include "intercept/handover.h"

#include <stdlib.h>

#include "base/owner.h"
#include "base/stack.h"
#include "intercept/session.h"
#include "net/budget.h"

enum {
    SLACK = 8, /* a worker may have 1/SLACK more: among many connections a few more do not matter */
    RESCUE_AFTER_MS = 250, /* how long to wait for a worker that does not move */
};

struct given {
    struct given *next;
    const struct listener *listener;
    uint64_t at_ms;
    int fd;
};

/* A worker's. */
struct handover {
    struct worker *worker;
    _Atomic(struct given *) given; /* by others, the last one first */
    atomic_uint pending;           /* those that were given or are being taken */
    atomic_bool stuck;             /* others had to serve what they gave to it */
    struct timer rescue;           /* to check that others have taken what this one gave */
};

static void rescue(struct timer *timer);

/* ---- loads ---- */

unsigned handover_pending(const struct worker *worker)
{
    return atomic_load_explicit(&worker->handover->pending, memory_order_acquire);
}

uint64_t handover_load(const struct worker *worker)
{
    uint64_t closed = counter_read(&worker->counters.closed);

    return counter_read(&worker->counters.accepted) - closed + handover_pending(worker);
}

/* The worker with the fewest; `worker` itself if none has clearly fewer. */
static struct worker *pick(struct worker *worker)
{
    const struct listeners *listeners = worker->listeners;
    uint64_t own = handover_load(worker), fewest = own;
    struct worker *picked = worker;

    for (uint32_t i = 1; i < listeners->worker_count && fewest > 0; i++) {
        struct worker *other = &listeners->workers[(worker->index + i) % listeners->worker_count];
        uint64_t load = handover_load(other);

        if (load >= fewest || atomic_load_explicit(&other->handover->stuck, memory_order_relaxed))
            continue;
        fewest = load;
        picked = other;
    }
    return own > fewest + fewest / SLACK ? picked : worker;
}

/* ---- giving and taking ---- */

static void push(struct handover *to, struct given *first, struct given *last)
{
    struct given *was;

    STACK_PUSH_CHAIN(&to->given, first, last, next, &was);
    if (!was) /* else it was woken already */
        worker_wake(to->worker);
}

/* Who drains wants to be done, and where descriptors are scarce, none is to be reserved for a
 * connection that may have to be refused. */
static bool may_not_wait(const struct worker *worker)
{
    const struct budget *budget = worker->budget;

    return atomic_load_explicit(&worker->listeners->draining, memory_order_relaxed) ||
           budget_used(budget) > budget->most / 4 * 3;
}

bool handover_give(struct worker *worker, const struct listener *listener, int fd)
{
    struct handover *own = worker->handover;
    struct worker *to = pick(worker);
    struct given *given;

    if (to == worker || may_not_wait(worker))
        return false;
    given = malloc(sizeof *given);
    if (!given)
        return false;
    *given = (struct given){.listener = listener, .at_ms = worker->loop.now_ms, .fd = fd};
    atomic_fetch_add_explicit(&to->handover->pending, 1, memory_order_relaxed);
    push(to->handover, given, given);
    if (!timer_is_set(&own->rescue))
        loop_set_timer(&worker->loop, &own->rescue, RESCUE_AFTER_MS, rescue);
    return true;
}

static struct given *reverse(struct given *given)
{
    struct given *reversed = NULL;

    while (given) {
        struct given *next = given->next;

        given->next = reversed;
        reversed = given;
        given = next;
    }
    return reversed;
}

/* `worker` serves what was given to itself or to another one, the first one first. */
static void serve(struct worker *worker, struct handover *to, struct given *given)
{
    while (given) {
        struct given *next = given->next;

        given->listener->intercept->accept(worker, given->listener, given->fd);
        /* Last: better counted twice for a moment than not at all. */
        atomic_fetch_sub_explicit(&to->pending, 1, memory_order_release);
        free(given);
        given = next;
    }
}

void handover_take(struct worker *worker)
{
    struct handover *own = worker->handover;

    atomic_store_explicit(&own->stuck, false, memory_order_relaxed);
    serve(worker, own, reverse(STACK_TAKE(&own->given)));
}

/* ---- workers that do not move ---- */

/* Serves what another worker has not taken for too long. False if there may be more to wait for. */
static bool rescue_from(struct worker *worker, struct handover *to)
{
    struct given *last = STACK_TAKE(&to->given), *first;

    if (!last)
        return true;
    first = reverse(last);
    if (worker->loop.now_ms < first->at_ms + RESCUE_AFTER_MS) {
        (void)reverse(first);
        push(to, last, first);
        return false;
    }
    atomic_store_explicit(&to->stuck, true, memory_order_relaxed);
    worker_wake(to->worker); /* it clears `stuck` as soon as it moves */
    serve(worker, to, first);
    return true;
}

static void rescue(struct timer *timer)
{
    struct worker *worker = OWNER(timer, struct handover, rescue)->worker;
    const struct listeners *listeners = worker->listeners;
    bool done = true;

    for (uint32_t i = 0; i < listeners->worker_count; i++)
        if (i != worker->index)
            done &= rescue_from(worker, listeners->workers[i].handover);
    if (!done)
        loop_set_timer(&worker->loop, timer, RESCUE_AFTER_MS, rescue);
}

/* ---- life ---- */

bool handover_open(struct worker *worker)
{
    struct handover *handover = calloc(1, sizeof *handover);

    if (!handover || !timers_reserve(&worker->loop.timers, 1)) {
        free(handover);
        return false;
    }
    handover->worker = worker;
    handover->rescue.index = TIMER_OFF;
    worker->handover = handover;
    return true;
}

void handover_close(struct worker *worker)
{
    if (!worker->handover)
        return;
    timer_cancel(&worker->loop.timers, &worker->handover->rescue);
    timers_release(&worker->loop.timers, 1);
    free(worker->handover);
    worker->handover = NULL;
}
