/* The event loop of one thread: descriptors, deadlines, and work for the next turn. It calls back,
 * and knows none of its users. */
#ifndef PYSIDECAR_LOOP_LOOP_H
#define PYSIDECAR_LOOP_LOOP_H

#include <stdint.h>
#include <sys/epoll.h>

#include "loop/task.h"
#include "loop/timer.h"

/* A watched descriptor, embedded in its owner. */
struct watch {
    int fd;      /* -1: none */
    int pending; /* 1 + the index of its event in this turn; 0 if it has none */
    void (*ready)(struct watch *, uint32_t events); /* may be changed at any time */
};

struct loop {
    int epoll;
    uint64_t now_ns, now_ms; /* CLOCK_MONOTONIC at the beginning of this turn */
    struct timers timers;
    struct tasks tasks;
    struct task *each_turn;     /* the last added first */
    struct epoll_event *events; /* of this turn; NULL between two turns */
};

/* 0 or -errno. Close it after a failure, too. */
int loop_open(struct loop *loop);
/* Nothing may be watched, set or scheduled any more. */
void loop_close(struct loop *loop);
/* One turn: waits, tells events, runs tasks, then timers. */
void loop_turn(struct loop *loop);
void loop_update_clock(struct loop *loop);
/* Runs the task at the end of each turn, for good; the last added runs first. */
void loop_add_each_turn(struct loop *loop, struct task *task);

/* Watches watch->fd for these epoll events. 0 or -errno. */
int loop_watch(struct loop *loop, struct watch *watch, uint32_t events);
/* Ends the watch. An event that this turn has brought already is dropped. */
void loop_unwatch(struct loop *loop, struct watch *watch);
/* Ends the watch and closes its descriptor. */
void loop_close_watch(struct loop *loop, struct watch *watch);

/* Whether this turn has an event for it that was not told yet. */
static inline bool watch_is_pending(const struct watch *watch)
{
    return watch->pending != 0;
}

/* Sets a timer, which has to be off before its owner is freed. */
void loop_set_timer(struct loop *loop, struct timer *timer, uint64_t in_ms,
                    void (*expired)(struct timer *));

#endif
