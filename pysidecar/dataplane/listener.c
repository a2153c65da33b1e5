/* Accepting. All workers watch all listeners, and the kernel wakes one of them for a connection. */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "internal.h"

enum {
    ACCEPT_BATCH = 32,   /* connections accepted before others get their turn */
    REFUSE_BATCH = 256,  /* connections that wait for fds */
    DRAIN_BATCH = 16384, /* more than wait at all listeners, unless they come faster than we take */
    ACCEPT_PAUSE_MS = 20,
    FEW_CONNECTIONS = 64, /* of a worker: however they are shared out, it does not matter */
};

static const struct transport {
    void (*accept)(struct worker *worker, const struct listener *listener, int fd);
    void (*refuse)(struct worker *worker, const struct listener *listener, int fd);
    uint8_t fds; /* that a connection may need at most */
} transports[] = {
    [DP_TRANSPORT_UNIX] = {control_accept, control_refuse, FDS_PER_REQUEST},
    [DP_TRANSPORT_HEADER] = {header_accept, downstream_refuse, FDS_PER_RELAY},
    [DP_TRANSPORT_REDIRECT] = {netfilter_accept, downstream_refuse, FDS_PER_RELAY},
    [DP_TRANSPORT_TPROXY] = {netfilter_accept, downstream_refuse, FDS_PER_RELAY},
};

static void refuse_waiting(struct timer *timer);
static void accept_again(struct timer *timer);

/* ---- taking what waits ---- */

enum taken {
    TAKEN_ONE,
    TAKEN_NONE,  /* nobody waits */
    TAKEN_SHORT, /* somebody does, but we are out of something */
};

/* Connections go before pipes that nobody uses. */
static bool reserve_fds(struct worker *worker, int count)
{
    if (fds_reserve(worker->dp, count))
        return true;
    relay_close_pool(worker);
    return fds_reserve(worker->dp, count);
}

/* Takes a connection that waits at the listener; `refuse`: also where there are no fds for it, only
 * to refuse it. */
static enum taken take_one(struct worker *worker, const struct listener *listener, bool refuse)
{
    const struct transport *transport = &transports[listener->settings.transport];
    bool serve = reserve_fds(worker, transport->fds);
    int fd;

    if (!serve && !refuse)
        return TAKEN_SHORT;
    fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
        (serve ? transport->accept : transport->refuse)(worker, listener, fd);
        return TAKEN_ONE;
    }
    if (serve)
        fds_release(worker->dp, transport->fds);
    if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
        fds_ran_out(worker->dp, worker->loop.now_ms);
        return TAKEN_SHORT;
    }
    return errno == ECONNABORTED || errno == EINTR ? TAKEN_ONE : TAKEN_NONE;
}

/* Takes all that wait, those for which there are no fds only to refuse them. False when others
 * shall get their turn before it is done. */
static bool take_all(struct worker *worker, int most)
{
    for (size_t i = 0; i < worker->dp->listener_count; i++)
        while (take_one(worker, &worker->dp->listeners[i], true) == TAKEN_ONE)
            if (most-- == 0)
                return false;
    return true;
}

/* ---- accepting, or not ---- */

static void set_accepting(struct worker *worker, bool on)
{
    if (worker->accepting == on)
        return;
    worker->accepting = on;
    for (size_t i = 0; i < worker->dp->listener_count; i++)
        if (on)
            /* Only one of the workers is woken for a connection. */
            (void)loop_watch(&worker->loop, &worker->acceptors[i].watch, EPOLLIN | EPOLLEXCLUSIVE);
        else
            loop_unwatch(&worker->loop, &worker->acceptors[i].watch);
}

static void stop_accepting(struct worker *worker, bool leaves_to_others)
{
    set_accepting(worker, false);
    worker->leaves_to_others = leaves_to_others;
    loop_set_timer(&worker->loop, &worker->accept_again, ACCEPT_PAUSE_MS, accept_again);
}

static void accept_again(struct timer *timer)
{
    struct worker *worker = OWNER(timer, struct worker, accept_again);

    timer_cancel(&worker->loop.timers, timer); /* where it is not the timer that calls */
    if (!worker->drained)
        set_accepting(worker, true);
}

/* Up to a batch of what waits at the listener. Out of fds or memory, the listeners are not watched
 * for a while: one that is ready and cannot be served would spin. */
static void accept_waiting(struct worker *worker, const struct listener *listener)
{
    for (int i = 0; i < ACCEPT_BATCH; i++) {
        enum taken taken = take_one(worker, listener, false);

        if (taken == TAKEN_NONE)
            return;
        if (taken == TAKEN_ONE)
            continue;
        stop_accepting(worker, false);
        counter_add(&worker->counters.accept_pauses, 1);
        if (!timer_is_set(&worker->refuse))
            loop_set_timer(&worker->loop, &worker->refuse, REFUSE_AFTER_MS, refuse_waiting);
        return;
    }
}

/* Who came when there were no fds has waited for a second. (How long each has waited, the kernel
 * does not say: those that came later have waited for less.) */
static void refuse_waiting(struct timer *timer)
{
    struct worker *worker = OWNER(timer, struct worker, refuse);

    if (!worker->drained && !take_all(worker, REFUSE_BATCH)) /* the rest in the next turn */
        timer_set(&worker->loop.timers, timer, worker->loop.now_ns + 1, refuse_waiting);
}

/* ---- shares ---- */

static uint64_t connections_of(const struct worker *worker)
{
    return counter_read(&worker->counters.accepted) - counter_read(&worker->counters.closed);
}

/* Whether this worker has clearly more connections than its share. */
static bool has_too_many(const struct worker *worker)
{
    const struct dp *dp = worker->dp;
    uint64_t own = connections_of(worker), all = 0;

    if (own < FEW_CONNECTIONS)
        return false;
    for (uint32_t i = 0; i < dp->worker_count; i++)
        all += connections_of(&dp->workers[i]);
    return 4 * own * dp->worker_count > 5 * all;
}

/* The kernel wakes the first worker that sleeps, which with clients that connect one after the
 * other is always the same: from its share on it leaves them to the others. */
static void listener_ready(struct watch *watch, uint32_t events)
{
    struct acceptor *acceptor = OWNER(watch, struct acceptor, watch);
    struct worker *worker = acceptor->worker;

    (void)events;
    accept_waiting(worker, acceptor->listener);
    if (!worker->accepting || !has_too_many(worker))
        return;
    stop_accepting(worker, true);
    /* EPOLLEXCLUSIVE woke nobody else for what came meanwhile. */
    for (size_t i = 0; i < worker->dp->listener_count; i++)
        accept_waiting(worker, &worker->dp->listeners[i]);
}

/* ---- a worker's life ---- */

/* Takes what the listeners still hold (those clients believe to be served), then lets go. */
static void drain(struct worker *worker)
{
    if (worker->drained || !atomic_load_explicit(&worker->dp->draining, memory_order_acquire))
        return;
    (void)take_all(worker, DRAIN_BATCH);
    listener_leave_all(worker);
}

static void turn_ends(struct task *task)
{
    struct worker *worker = OWNER(task, struct worker, accept_turn_ends);

    if (!worker->accepting && worker->leaves_to_others && !has_too_many(worker))
        accept_again(&worker->accept_again);
    drain(worker);
}

bool listener_watch_all(struct worker *worker)
{
    struct dp *dp = worker->dp;

    worker->acceptors = calloc(dp->listener_count + 1, sizeof *worker->acceptors);
    if (!worker->acceptors)
        return false;
    for (size_t i = 0; i < dp->listener_count; i++)
        worker->acceptors[i] = (struct acceptor){
            .watch = {.fd = dp->listeners[i].fd, .ready = listener_ready},
            .worker = worker,
            .listener = &dp->listeners[i],
        };
    worker->accept_turn_ends.run = turn_ends;
    loop_add_each_turn(&worker->loop, &worker->accept_turn_ends);
    set_accepting(worker, true);
    return true;
}

void listener_leave_all(struct worker *worker)
{
    struct dp *dp = worker->dp;

    timer_cancel(&worker->loop.timers, &worker->accept_again);
    timer_cancel(&worker->loop.timers, &worker->refuse);
    if (worker->drained)
        return;
    set_accepting(worker, false);
    worker->drained = true;
    if (atomic_fetch_sub_explicit(&dp->undrained, 1, memory_order_acq_rel) > 1)
        return;
    for (size_t i = 0; i < dp->listener_count; i++)
        if (dp->listeners[i].settings.transport == DP_TRANSPORT_UNIX)
            foreign_close_listener(dp, dp->listeners[i].fd);
        else
            close(dp->listeners[i].fd);
}
