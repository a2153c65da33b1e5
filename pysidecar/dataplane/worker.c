/* A thread: its loop, and what each turn begins and ends with. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "diag.h"
#include "internal.h"

enum { TIMERS = 4 }; /* of a worker itself */

/* The newest table: a route change holds for every lookup that begins after dp_set_routes. */
struct table *worker_table(struct worker *worker, uint32_t which)
{
    struct table *table;

    if (!atomic_load_explicit(&worker->new_tables[which], memory_order_relaxed))
        return worker->tables[which];
    table = atomic_exchange_explicit(&worker->new_tables[which], NULL, memory_order_acq_rel);
    if (table) {
        table_release(worker->tables[which]);
        worker->tables[which] = table;
    }
    return worker->tables[which];
}

void worker_wake(struct worker *worker)
{
    uint64_t one = 1;

    if (write(worker->mail.fd, &one, sizeof one) < 0)
        return; /* at its limit it is readable all the same */
}

static void mail_ready(struct watch *watch, uint32_t events)
{
    struct worker *worker = OWNER(watch, struct worker, mail);
    uint64_t count;

    (void)events;
    if (read(watch->fd, &count, sizeof count) < 0)
        return;                                       /* it was taken already */
    for (uint32_t which = 0; which < TABLES; which++) /* so that old ones are freed */
        worker_table(worker, which);
    direct_take_reused(worker);
}

/* The sidecar is alive while any worker is: listeners are shared, so whoever is not stuck serves.
 * The workers share the page's cache line, too, and leave it alone while it is fresh. */
static void show_sign_of_life(const struct worker *worker)
{
    struct mosnhook_page *page = worker->dp->page;
    uint64_t half_ns = MOSNHOOK_ALIVE_INTERVAL_MS * UINT64_C(500000);

    if (page && worker->loop.now_ns > __atomic_load_n(&page->alive_ns, __ATOMIC_RELAXED) + half_ns)
        __atomic_store_n(&page->alive_ns, worker->loop.now_ns, __ATOMIC_RELEASE);
}

/* Nothing to do but to show that we are alive, which each turn does. */
static void alive_expired(struct timer *timer)
{
    struct worker *worker = OWNER(timer, struct worker, alive);

    loop_set_timer(&worker->loop, timer, MOSNHOOK_ALIVE_INTERVAL_MS, alive_expired);
}

static void turn_ends(struct task *task)
{
    struct worker *worker = OWNER(task, struct worker, turn_ends);

    show_sign_of_life(worker);
    if (fds_look(worker->dp, worker->loop.now_ms))
        relay_close_pool(worker);
    connections_hand_over(worker);
}

int worker_create(struct worker *worker, struct dp *dp, unsigned index)
{
    int result = loop_open(&worker->loop);

    worker->dp = dp;
    worker->index = index;
    worker->random = clock_ns(CLOCK_MONOTONIC) + ((uint64_t)index << 48);
    worker->diag = diag_open(); /* early: whoever runs out of fds still knows who connects */
    worker->freed = (struct watch){.fd = -1};
    worker->mail =
        (struct watch){.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), .ready = mail_ready};
    worker->alive.index = worker->accept_again.index = worker->refuse.index = TIMER_OFF;
    worker->poll.index = TIMER_OFF;
    if (result == 0 && worker->mail.fd < 0)
        result = -errno;
    if (result == 0 && !timers_reserve(&worker->loop.timers, TIMERS))
        result = -ENOMEM;
    worker->turn_ends.run = turn_ends;
    loop_add_each_turn(&worker->loop, &worker->turn_ends);
    return result < 0 ? result : loop_watch(&worker->loop, &worker->mail, EPOLLIN);
}

void worker_destroy(struct worker *worker)
{
    assert(worker->direct.count == 0 && !worker->closed && !worker->polled);
    for (int which = 0; which < TABLES; which++) {
        table_drop(worker->tables[which]);
        table_drop(atomic_load(&worker->new_tables[which]));
    }
    relay_close_pool(worker);
    assert(counter_read(&worker->counters.buffers) == 0);
    direct_close_table(worker);
    free(worker->acceptors);
    close_fd(&worker->diag);
    close_fd(&worker->mail.fd);
    timer_cancel(&worker->loop.timers, &worker->alive);
    if (worker->loop.timers.reserved)
        timers_release(&worker->loop.timers, TIMERS);
    loop_close(&worker->loop);
}

bool worker_prepare(struct worker *worker)
{
    loop_update_clock(&worker->loop);
    if (worker->dp->page)
        loop_set_timer(&worker->loop, &worker->alive, 0, alive_expired);
    return listener_watch_all(worker);
}

void *worker_run(void *argument)
{
    struct worker *worker = argument;

    loop_update_clock(&worker->loop);
    while (!atomic_load_explicit(&worker->dp->stopping, memory_order_acquire))
        loop_turn(&worker->loop);
    return NULL;
}
