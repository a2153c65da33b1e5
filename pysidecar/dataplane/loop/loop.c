#include "loop/loop.h"

#include <assert.h>
#include <errno.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"

enum {
    EVENT_BATCH = 256,
    LONGEST_WAIT_MS = 60000,
};

int loop_open(struct loop *loop)
{
    tasks_init(&loop->tasks);
    loop_update_clock(loop);
    loop->epoll = epoll_create1(EPOLL_CLOEXEC);
    return loop->epoll < 0 ? -errno : 0;
}

void loop_close(struct loop *loop)
{
    assert(loop->tasks.count == 0);
    timers_free(&loop->timers);
    close_fd(&loop->epoll);
}

void loop_update_clock(struct loop *loop)
{
    loop->now_ns = clock_ns(CLOCK_MONOTONIC);
    loop->now_ms = loop->now_ns / NS_PER_MS;
}

void loop_add_each_turn(struct loop *loop, struct task *task)
{
    task->next = loop->each_turn;
    loop->each_turn = task;
}

int loop_watch(struct loop *loop, struct watch *watch, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = watch};

    return epoll_ctl(loop->epoll, EPOLL_CTL_ADD, watch->fd, &event) < 0 ? -errno : 0;
}

void loop_unwatch(struct loop *loop, struct watch *watch)
{
    if (watch->pending)
        loop->events[watch->pending - 1].data.ptr = NULL;
    watch->pending = 0;
    epoll_ctl(loop->epoll, EPOLL_CTL_DEL, watch->fd, NULL);
}

/* Not left to the close: a child that was just forked has the descriptor, too, and the kernel would
 * go on telling of it until the child executes its program. */
void loop_close_watch(struct loop *loop, struct watch *watch)
{
    if (watch->fd >= 0)
        loop_unwatch(loop, watch);
    close_fd(&watch->fd);
}

void loop_set_timer(struct loop *loop, struct timer *timer, uint64_t in_ms,
                    void (*expired)(struct timer *))
{
    timer_set(&loop->timers, timer, (loop->now_ms + in_ms) * NS_PER_MS, expired);
}

static int wait_for_events(const struct loop *loop, struct epoll_event *events)
{
    uint64_t now_ns = loop->now_ns, at_ns = timers_next(&loop->timers), left_ns;
    struct timespec timeout = {0};

    if (loop->tasks.count > 0 || at_ns <= now_ns)
        return epoll_wait(loop->epoll, events, EVENT_BATCH, 0);
    left_ns = at_ns - now_ns;
    if (left_ns >= (uint64_t)LONGEST_WAIT_MS * NS_PER_MS)
        return epoll_wait(loop->epoll, events, EVENT_BATCH, LONGEST_WAIT_MS);
    if (left_ns >= NS_PER_MS) /* rounded up: sooner would be for nothing */
        return epoll_wait(loop->epoll, events, EVENT_BATCH,
                          (int)((left_ns + NS_PER_MS - 1) / NS_PER_MS));
    timeout.tv_nsec = (long)left_ns;
    return epoll_pwait2(loop->epoll, events, EVENT_BATCH, &timeout, NULL);
}

/* Which events are still to be told, each watch has to know that is closed by an earlier one. */
static void tell_events(struct loop *loop, struct epoll_event *events, int count)
{
    loop->events = events;
    for (int i = 0; i < count; i++)
        ((struct watch *)events[i].data.ptr)->pending = i + 1;
    for (int i = 0; i < count; i++) {
        struct watch *watch = events[i].data.ptr;

        if (!watch)
            continue;
        watch->pending = 0;
        watch->ready(watch, events[i].events);
    }
    loop->events = NULL;
}

void loop_turn(struct loop *loop)
{
    struct epoll_event events[EVENT_BATCH];
    int count = wait_for_events(loop, events);

    loop_update_clock(loop);
    tell_events(loop, events, count);
    tasks_run(&loop->tasks);
    timers_run(&loop->timers, loop->now_ns);
    for (struct task *task = loop->each_turn; task; task = task->next)
        task->run(task);
}
