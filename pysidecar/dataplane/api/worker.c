#include "api/worker.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "api/inbox.h"
#include "base/fd.h"
#include "base/owner.h"
#include "intercept/handover.h"
#include "intercept/listener.h"
#include "l4/direct.h"
#include "l4/sockmap.h"
#include "l7/streams.h"
#include "net/budget.h"
#include "net/diag.h"

static void mail_ready(struct watch *watch, uint32_t events)
{
    struct worker *worker = OWNER(watch, struct worker, mail);
    uint64_t count;

    (void)events;
    if (read(watch->fd, &count, sizeof count) < 0)
        return; /* another call has taken it */
    /* Adopts new tables, so that old ones are freed. */
    for (uint32_t which = 0; which < TABLES; which++)
        tables_get(worker, which);
    if (!router_adopt(worker))
        worker_wake(worker); /* again in the next turn */
    direct_take_reused(worker);
    handover_take(worker);
    streams_look(worker);
}

/* The sidecar is alive while any worker is: they share the listeners, so whichever is not stuck
 * serves. They share the page's cache line, too, and leave it alone while it is fresh. */
static void show_sign_of_life(const struct worker *worker)
{
    struct mosnhook_page *page = worker->page;
    uint64_t half_ns = MOSNHOOK_ALIVE_INTERVAL_MS * UINT64_C(500000);

    if (page && worker->loop.now_ns > __atomic_load_n(&page->alive_ns, __ATOMIC_RELAXED) + half_ns)
        __atomic_store_n(&page->alive_ns, worker->loop.now_ns, __ATOMIC_RELEASE);
}

/* Only wakes the loop: each turn shows a sign of life. */
static void alive_expired(struct timer *timer)
{
    struct thread *thread = OWNER(timer, struct thread, alive);

    loop_set_timer(&thread->worker->loop, timer, MOSNHOOK_ALIVE_INTERVAL_MS, alive_expired);
}

static void turn_ends(struct task *task)
{
    struct thread *thread = OWNER(task, struct thread, turn_ends);
    struct worker *worker = thread->worker;

    show_sign_of_life(worker);
    if (budget_look(worker->budget, worker->loop.now_ms))
        pipes_close(worker);
    inbox_end_turn(&thread->inbox, worker);
}

static int open_loop(struct worker *worker)
{
    int result = loop_open(&worker->loop);

    worker->mail =
        (struct watch){.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), .ready = mail_ready};
    if (result == 0 && worker->mail.fd < 0)
        result = -errno;
    return result < 0 ? result : loop_watch(&worker->loop, &worker->mail, EPOLLIN);
}

int thread_create(struct thread *thread, struct worker *workers, uint32_t worker_count,
                  unsigned index)
{
    struct worker *worker = &workers[index];
    int result;

    thread->worker = worker;
    thread->alive.index = TIMER_OFF;
    thread->turn_ends.run = turn_ends;
    worker->index = index;
    worker->trace.worker = (uint16_t)index;
    worker->loop.epoll = worker->mail.fd = -1;
    worker->diag = diag_open(); /* early: out of descriptors we still have to know who connects */
    worker->pipes = &thread->pipes;
    worker->spares = &thread->spares;
    worker->tables = &thread->tables;
    tables_init(&thread->tables, index);
    worker->router = &thread->router;
    worker->inbox = &thread->inbox;
    result = inbox_open(&thread->inbox, thread->inboxes, index);
    if (result < 0)
        return result;
    result = open_loop(worker);
    if (result < 0)
        return result;
    worker->direct = direct_create(worker, workers, worker_count);
    worker->sockmap = sockmap_create(worker);
    if (!worker->direct || !worker->sockmap || !handover_open(worker) ||
        !streams_open(worker, worker->limits) || !timers_reserve(&worker->loop.timers, 1))
        return -ENOMEM;
    loop_add_each_turn(&worker->loop, &thread->turn_ends);
    return 0;
}

void thread_destroy(struct thread *thread)
{
    struct worker *worker = thread->worker;

    inbox_end_turn(&thread->inbox, worker);
    assert(!worker->closed);
    streams_close(worker);
    inbox_close(&thread->inbox);
    trace_free(&worker->trace);
    tables_close(&thread->tables);
    router_close(&thread->router);
    pipes_close(worker);
    (void)spares_give_up(worker);
    assert(counter_read(&worker->counters.buffers) == 0);
    direct_destroy(worker);
    sockmap_destroy(worker);
    handover_close(worker);
    free(worker->acceptors);
    close_fd(&worker->diag);
    close_fd(&worker->mail.fd);
    timer_cancel(&worker->loop.timers, &thread->alive);
    if (worker->loop.timers.reserved)
        timers_release(&worker->loop.timers, 1);
    loop_close(&worker->loop);
}

int thread_prepare(struct thread *thread)
{
    struct worker *worker = thread->worker;

    spares_keep(worker);
    loop_update_clock(&worker->loop);
    if (worker->page)
        loop_set_timer(&worker->loop, &thread->alive, 0, alive_expired);
    return listener_watch_all(worker) ? 0 : -ENOMEM;
}

static void *thread_run(void *argument)
{
    struct thread *thread = argument;

    loop_update_clock(&thread->worker->loop);
    while (!atomic_load_explicit(thread->stopping, memory_order_acquire))
        loop_turn(&thread->worker->loop);
    return NULL;
}

int thread_start(struct thread *thread)
{
    char name[16]; /* for top(1) and debuggers */
    int error = pthread_create(&thread->id, NULL, thread_run, thread);

    if (error)
        return -error;
    thread->started = true;
    snprintf(name, sizeof name, "worker-%u", (unsigned)(uint8_t)thread->worker->index);
    pthread_setname_np(thread->id, name);
    return 0;
}
