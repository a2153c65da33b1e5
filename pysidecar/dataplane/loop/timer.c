#include "loop/timer.h"

#include <assert.h>
#include <stdlib.h>

enum { FIRST_PLACES = 64 };

static void place(struct timers *timers, size_t index, struct timer *timer)
{
    timers->heap[index] = timer;
    timer->index = (int32_t)index;
}

static void sift_up(struct timers *timers, size_t index, struct timer *timer)
{
    while (index > 0) {
        size_t parent = (index - 1) / 2;

        if (timers->heap[parent]->at_ns <= timer->at_ns)
            break;
        place(timers, index, timers->heap[parent]);
        index = parent;
    }
    place(timers, index, timer);
}

static void sift_down(struct timers *timers, size_t index, struct timer *timer)
{
    for (;;) {
        size_t child = 2 * index + 1;

        if (child >= timers->count)
            break;
        if (child + 1 < timers->count &&
            timers->heap[child + 1]->at_ns < timers->heap[child]->at_ns)
            child++;
        if (timer->at_ns <= timers->heap[child]->at_ns)
            break;
        place(timers, index, timers->heap[child]);
        index = child;
    }
    place(timers, index, timer);
}

bool timers_reserve(struct timers *timers, size_t count)
{
    size_t capacity = timers->capacity ? timers->capacity : FIRST_PLACES;
    struct timer **heap;

    while (capacity < timers->reserved + count)
        capacity *= 2;
    if (capacity != timers->capacity) {
        heap = realloc(timers->heap, capacity * sizeof(struct timer *));
        if (!heap)
            return false;
        timers->heap = heap;
        timers->capacity = capacity;
    }
    timers->reserved += count;
    return true;
}

void timers_release(struct timers *timers, size_t count)
{
    assert(timers->reserved >= count && timers->count + count <= timers->reserved);
    timers->reserved -= count;
}

void timer_set(struct timers *timers, struct timer *timer, uint64_t at_ns,
               void (*expired)(struct timer *))
{
    timer_cancel(timers, timer);
    assert(timers->count < timers->reserved);
    timer->at_ns = at_ns >= timers->not_before_ns ? at_ns : timers->not_before_ns;
    timer->expired = expired;
    sift_up(timers, timers->count++, timer);
}

void timer_cancel(struct timers *timers, struct timer *timer)
{
    struct timer *last;
    size_t index;

    if (!timer_is_set(timer))
        return;
    index = (size_t)timer->index;
    assert(index < timers->count && timers->heap[index] == timer);
    timer->index = TIMER_OFF;
    last = timers->heap[--timers->count];
    if (last == timer)
        return;
    if (index > 0 && timers->heap[(index - 1) / 2]->at_ns > last->at_ns)
        sift_up(timers, index, last);
    else
        sift_down(timers, index, last);
}

void timers_run(struct timers *timers, uint64_t now_ns)
{
    timers->not_before_ns = now_ns + 1;
    while (timers->count > 0 && timers->heap[0]->at_ns <= now_ns) {
        struct timer *timer = timers->heap[0];

        timer_cancel(timers, timer);
        timer->expired(timer);
    }
    timers->not_before_ns = 0;
}

uint64_t timers_next(const struct timers *timers)
{
    return timers->count > 0 ? timers->heap[0]->at_ns : UINT64_MAX;
}

void timers_free(struct timers *timers)
{
    assert(timers->count == 0 && timers->reserved == 0);
    free(timers->heap);
    timers->heap = NULL;
    timers->capacity = 0;
}
