/* The events of one thread: descriptors, deadlines, and work that goes on later. It calls back, and
 * knows nobody. */
#ifndef PYSIDECAR_LOOP_LOOP_H
#define PYSIDECAR_LOOP_LOOP_H

#include <stdint.h>
#include <sys/epoll.h>

#include "loop/task.h"
#include "loop/timer.h"

/* A descriptor that is watched; embedded in what it belongs to. */
struct watch {
    int fd;      /* -1: none */
    int pending; /* one more than the place of its event among those of this turn; 0: it has none */
    void (*ready)(struct watch *, uint32_t events); /* may be changed at any time */
};

struct loop {
    int epoll;
    uint64_t now_ns, now_ms; /* CLOCK_MONOTONIC when this turn began */
    struct timers timers;
    struct tasks tasks;
    struct task *each_turn;     /* in the order in which they were added, reversed */
    struct epoll_event *events; /* those of this turn; NULL: between two turns */
};

/* 0 or -errno. Also after a failure it is to be closed. */
int loop_open(struct loop *loop);
/* With nothing watched, set or scheduled any more. */
void loop_close(struct loop *loop);
/* Waits for something to do, and does it. */
void loop_turn(struct loop *loop);
void loop_update_clock(struct loop *loop);
/* To be run at the end of each turn, the last added first; never taken back. */
void loop_add_each_turn(struct loop *loop, struct task *task);

/* Watches watch->fd for `events` (of epoll). 0 or -errno. */
int loop_watch(struct loop *loop, struct watch *watch, uint32_t events);
/* Ends it: also an event that this turn has brought already is not told any more. */
void loop_unwatch(struct loop *loop, struct watch *watch);
/* The same for a descriptor that is closed with it. */
void loop_close_watch(struct loop *loop, struct watch *watch);

/* Whether this turn has brought an event that is still to be told. */
static inline bool watch_is_pending(const struct watch *watch)
{
    return watch->pending != 0;
}

/* The owner's timers and tasks must be off before it is freed. */
void loop_set_timer(struct loop *loop, struct timer *timer, uint64_t in_ms,
                    void (*expired)(struct timer *));

#endif
