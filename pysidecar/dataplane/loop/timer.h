/* Deadlines: a heap by time, in which each timer knows its place, so that moving and cancelling
 * need no search. */
#ifndef PYSIDECAR_LOOP_TIMER_H
#define PYSIDECAR_LOOP_TIMER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Embedded in its owner. */
struct timer {
    uint64_t at_ns;
    void (*expired)(struct timer *);
    int32_t index; /* in the heap; TIMER_OFF: it is not set */
};

enum { TIMER_OFF = -1 };

struct timers {
    struct timer **heap;
    size_t count, capacity;
    size_t reserved;        /* places that were promised */
    uint64_t not_before_ns; /* while they expire: none that is set expires in the same run */
};

/* Promises places to timers, so that setting one of them cannot fail. False when out of memory. */
bool timers_reserve(struct timers *timers, size_t count);
void timers_release(struct timers *timers, size_t count);
/* Sets or moves a timer, for which there is a place. `expired` is called once, when it is time. */
void timer_set(struct timers *timers, struct timer *timer, uint64_t at_ns,
               void (*expired)(struct timer *));
/* One that is not set stays that. */
void timer_cancel(struct timers *timers, struct timer *timer);
/* Calls those whose time has come; what they set waits for the next run. */
void timers_run(struct timers *timers, uint64_t now_ns);
/* When the first one expires; UINT64_MAX: none is set. */
uint64_t timers_next(const struct timers *timers);
/* With no timer set and no place reserved any more. */
void timers_free(struct timers *timers);

static inline bool timer_is_set(const struct timer *timer)
{
    return timer->index != TIMER_OFF;
}

#endif
