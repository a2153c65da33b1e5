/* Deadlines: a heap by time. Each timer knows its place, so that moving and cancelling need no
 * search. */
#ifndef PYSIDECAR_LOOP_TIMER_H
#define PYSIDECAR_LOOP_TIMER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Embedded in its owner. */
struct timer {
    uint64_t at_ns;
    void (*expired)(struct timer *);
    int32_t index; /* in the heap, or TIMER_OFF */
};

enum { TIMER_OFF = -1 };

struct timers {
    struct timer **heap;
    size_t count, capacity;
    size_t reserved; /* places promised to timers */
};

/* Promises places to timers, so that setting one cannot fail. False when out of memory. */
bool timers_reserve(struct timers *timers, size_t count);
void timers_release(struct timers *timers, size_t count);
/* Sets or moves a timer, for which a place is reserved. `expired` is called once, at that time. */
void timer_set(struct timers *timers, struct timer *timer, uint64_t at_ns,
               void (*expired)(struct timer *));
/* Does nothing if it is not set. */
void timer_cancel(struct timers *timers, struct timer *timer);
/* Calls `expired` of the timers whose time has come. */
void timers_run(struct timers *timers, uint64_t now_ns);
/* When the first one expires; UINT64_MAX if none is set. */
uint64_t timers_next(const struct timers *timers);
/* No timer may be set, and no place reserved. */
void timers_free(struct timers *timers);

static inline bool timer_is_set(const struct timer *timer)
{
    return timer->index != TIMER_OFF;
}

#endif
