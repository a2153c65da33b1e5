/* Timers against a list that is searched: what expires, when, and how often. */
#include <stdio.h>
#include <stdlib.h>

#include "loop/timer.h"

enum { TIMERS = 40, ROUNDS = 200000, SPAN = 1000 };

static struct timer timer[TIMERS];
static uint64_t expected[TIMERS]; /* when; UINT64_MAX: not set */
static uint64_t now, latest;      /* what expired last */

static void fail(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static void expired(struct timer *one)
{
    uint64_t *wanted = &expected[one - timer];

    if (*wanted > now || one->at_ns != *wanted)
        fail("expires too early, or is not set");
    if (one->at_ns < latest)
        fail("expires out of order");
    if (timer_is_set(one))
        fail("is set while it expires");
    latest = one->at_ns;
    *wanted = UINT64_MAX;
}

static void check_next(const struct timers *timers)
{
    uint64_t next = UINT64_MAX;

    for (int i = 0; i < TIMERS; i++)
        if (expected[i] < next)
            next = expected[i];
    if (timers_next(timers) != next)
        fail("is not the next one");
}

int main(void)
{
    struct timers timers = {0};

    if (!timers_reserve(&timers, TIMERS))
        return 1;
    for (int i = 0; i < TIMERS; i++) {
        timer[i].index = TIMER_OFF;
        expected[i] = UINT64_MAX;
    }
    srandom(1);
    for (int round = 0; round < ROUNDS; round++) {
        int which = (int)(random() % TIMERS);

        if (random() % 3 > 0) {
            expected[which] = now + (uint64_t)(random() % SPAN);
            timer_set(&timers, &timer[which], expected[which], expired);
        } else {
            timer_cancel(&timers, &timer[which]);
            expected[which] = UINT64_MAX;
        }
        check_next(&timers);
        now += (uint64_t)(random() % 20);
        latest = 0;
        timers_run(&timers, now);
        if (timers_next(&timers) <= now)
            fail("is late");
        check_next(&timers);
    }
    for (int i = 0; i < TIMERS; i++)
        timer_cancel(&timers, &timer[i]);
    timers_release(&timers, TIMERS);
    timers_free(&timers);
    return 0;
}
