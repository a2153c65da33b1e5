#include "intercept/listener.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/owner.h"
#include "base/sockaddr.h"
#include "intercept/control.h"
#include "intercept/handover.h"
#include "intercept/header.h"
#include "intercept/netfilter.h"
#include "intercept/plain.h"
#include "intercept/session.h"
#include "net/budget.h"
#include "net/foreign.h"
#include "net/pipe.h"
#include "net/socket.h"
#include "net/spares.h"

enum {
    ACCEPT_BATCH = 32,   /* connections accepted before others get their turn */
    REFUSE_BATCH = 256,  /* connections that wait for descriptors */
    DRAIN_BATCH = 16384, /* more than wait at all listeners, unless they come faster than we take */
    ACCEPT_PAUSE_MS = 20,
};

/* The ways in which connections come to us. A new one is registered here. */
static const struct intercept *const intercepts[] = {
    [DP_TRANSPORT_UNIX] = &intercept_control,      [DP_TRANSPORT_HEADER] = &intercept_header,
    [DP_TRANSPORT_REDIRECT] = &intercept_redirect, [DP_TRANSPORT_TPROXY] = &intercept_tproxy,
    [DP_TRANSPORT_LISTENER] = &intercept_plain,
};

enum { INTERCEPTS = sizeof intercepts / sizeof *intercepts };

/* A worker's watch of a listener. */
struct acceptor {
    struct watch watch;
    struct worker *worker;
    const struct listener *listener;
};

/* What a worker has to do with the listeners. */
struct acceptors {
    struct worker *worker;
    bool accepting, drained;
    bool gave;           /* a connection to another worker, in this turn */
    struct timer again;  /* to accept */
    struct timer refuse; /* connections that wait for descriptors */
    struct task turn_ends;
    struct acceptor each[]; /* one for each listener */
};

enum { TIMERS = 2 };

static void refuse_waiting(struct timer *timer);
static void again_expired(struct timer *timer);

/* ---- taking what waits ---- */

enum taken {
    TAKEN_ONE,
    TAKEN_NONE,  /* nobody waits */
    TAKEN_SHORT, /* somebody does, but we lack descriptors or memory */
};

/* Closes unused pipes where that helps: connections come first. */
static bool reserve_fds(struct worker *worker, int count)
{
    if (budget_reserve(worker->budget, count))
        return true;
    pipes_close(worker);
    return budget_reserve(worker->budget, count);
}

static void serve_or_give(struct worker *worker, const struct listener *listener, int fd)
{
    if (handover_give(worker, listener, fd))
        worker->acceptors->gave = true;
    else
        listener->intercept->accept(worker, listener, fd);
}

static bool is_shortage(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOBUFS;
}

/* Its descriptor, or -errno. */
static int accept_one(const struct listener *listener)
{
    int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    return fd < 0 ? -errno : fd;
}

/* Accepts a connection that waits at the listener. With `refuse` even without descriptors for it,
 * then only to refuse it. */
static enum taken take_one(struct worker *worker, const struct listener *listener, bool refuse)
{
    const struct intercept *intercept = listener->intercept;
    bool serve = !(refuse && worker->spares->given_up) && reserve_fds(worker, intercept->fds);
    int fd;

    if (!serve)
        trace(worker, 0, out_of_descriptors, budget_used(worker->budget), worker->budget->most);
    if (!serve && !refuse)
        return TAKEN_SHORT;
    if (!serve)
        (void)spares_give_up(worker);
    fd = accept_one(listener);
    if (is_shortage(-fd) && refuse && spares_give_up(worker)) {
        /* Whatever the budget says. */
        if (serve)
            budget_release(worker->budget, intercept->fds);
        serve = false;
        fd = accept_one(listener);
    }
    if (fd >= 0) {
        if (serve)
            serve_or_give(worker, listener, fd);
        else
            intercept->refuse(worker, listener, fd);
        return TAKEN_ONE;
    }
    if (serve)
        budget_release(worker->budget, intercept->fds);
    if (is_shortage(-fd)) {
        budget_ran_out(worker->budget, worker->loop.now_ms);
        return TAKEN_SHORT;
    }
    return fd == -ECONNABORTED || fd == -EINTR ? TAKEN_ONE : TAKEN_NONE;
}

/* Accepts all connections that wait, and refuses those without descriptors. False after `most` of
 * them: others get their turn. */
static bool take_all(struct worker *worker, int most)
{
    const struct listeners *listeners = worker->listeners;

    for (size_t i = 0; i < listeners->count; i++)
        while (take_one(worker, &listeners->each[i], true) == TAKEN_ONE)
            if (most-- == 0)
                return false;
    return true;
}

/* ---- accepting, or not ---- */

static void set_accepting(struct acceptors *acceptors, bool on)
{
    struct worker *worker = acceptors->worker;

    if (acceptors->accepting == on)
        return;
    acceptors->accepting = on;
    for (size_t i = 0; i < worker->listeners->count; i++)
        if (on)
            /* EPOLLEXCLUSIVE: a connection wakes only one of the workers. */
            (void)loop_watch(&worker->loop, &acceptors->each[i].watch, EPOLLIN | EPOLLEXCLUSIVE);
        else
            loop_unwatch(&worker->loop, &acceptors->each[i].watch);
}

static void stop_accepting(struct acceptors *acceptors)
{
    set_accepting(acceptors, false);
    loop_set_timer(&acceptors->worker->loop, &acceptors->again, ACCEPT_PAUSE_MS, again_expired);
}

static void again_expired(struct timer *timer)
{
    struct acceptors *acceptors = OWNER(timer, struct acceptors, again);

    if (!acceptors->drained)
        set_accepting(acceptors, true);
}

/* Accepts up to a batch. Without descriptors or memory, stops watching the listeners for a while: a
 * ready one that cannot be served would spin. */
static void accept_waiting(struct acceptors *acceptors, const struct listener *listener)
{
    struct worker *worker = acceptors->worker;

    for (int i = 0; i < ACCEPT_BATCH; i++) {
        enum taken taken = take_one(worker, listener, false);

        if (taken == TAKEN_NONE)
            return;
        if (taken == TAKEN_ONE)
            continue;
        stop_accepting(acceptors);
        counter_add(&worker->counters.accept_pauses, 1);
        if (!timer_is_set(&acceptors->refuse))
            loop_set_timer(&worker->loop, &acceptors->refuse, REFUSE_AFTER_MS, refuse_waiting);
        return;
    }
}

/* Refuses the connections that wait: the first came without descriptors REFUSE_AFTER_MS ago. (The
 * kernel does not say how long each has waited; later ones have waited for less.) */
static void refuse_waiting(struct timer *timer)
{
    struct acceptors *acceptors = OWNER(timer, struct acceptors, refuse);
    struct worker *worker = acceptors->worker;

    if (!acceptors->drained && !take_all(worker, REFUSE_BATCH)) /* the rest in the next turn */
        timer_set(&worker->loop.timers, timer, worker->loop.now_ns + 1, refuse_waiting);
}

/* The kernel wakes the first worker that sleeps. One that gave a connection away was the wrong one,
 * and goes behind the others: if clients connect one after the other, the worker with the fewest
 * comes first after a few turns, and nothing is given away any more. */
static void stand_last(struct acceptors *acceptors, struct acceptor *acceptor)
{
    struct loop *loop = &acceptors->worker->loop;

    loop_unwatch(loop, &acceptor->watch);
    if (loop_watch(loop, &acceptor->watch, EPOLLIN | EPOLLEXCLUSIVE) < 0)
        stop_accepting(acceptors);
}

static void listener_ready(struct watch *watch, uint32_t events)
{
    struct acceptor *acceptor = OWNER(watch, struct acceptor, watch);
    struct acceptors *acceptors = acceptor->worker->acceptors;

    (void)events;
    acceptors->gave = false;
    accept_waiting(acceptors, acceptor->listener);
    if (acceptors->gave && acceptors->accepting)
        stand_last(acceptors, acceptor);
}

/* ---- a worker's part ---- */

/* Accepts what the listeners still hold, as these clients are connected already, then leaves them.
 */
static void drain(struct acceptors *acceptors)
{
    struct worker *worker = acceptors->worker;

    if (acceptors->drained ||
        !atomic_load_explicit(&worker->listeners->draining, memory_order_acquire))
        return;
    (void)take_all(worker, DRAIN_BATCH);
    listener_leave_all(worker);
}

static void turn_ends(struct task *task)
{
    struct acceptors *acceptors = OWNER(task, struct acceptors, turn_ends);

    drain(acceptors);
    if (acceptors->worker->spares->given_up)
        spares_keep(acceptors->worker);
}

bool listener_watch_all(struct worker *worker)
{
    const struct listeners *listeners = worker->listeners;
    struct acceptors *acceptors =
        calloc(1, sizeof *acceptors + listeners->count * sizeof acceptors->each[0]);

    if (!acceptors || !timers_reserve(&worker->loop.timers, TIMERS)) {
        free(acceptors);
        return false;
    }
    for (size_t i = 0; i < listeners->count; i++)
        acceptors->each[i] = (struct acceptor){
            .watch = {.fd = listeners->each[i].fd, .ready = listener_ready},
            .worker = worker,
            .listener = &listeners->each[i],
        };
    acceptors->worker = worker;
    acceptors->again.index = acceptors->refuse.index = TIMER_OFF;
    acceptors->turn_ends.run = turn_ends;
    worker->acceptors = acceptors;
    loop_add_each_turn(&worker->loop, &acceptors->turn_ends);
    set_accepting(acceptors, true);
    return true;
}

void listener_leave_all(struct worker *worker)
{
    struct acceptors *acceptors = worker->acceptors;
    struct listeners *listeners = worker->listeners;
    uint64_t one = 1;

    if (!acceptors || acceptors->drained)
        return;
    set_accepting(acceptors, false);
    acceptors->drained = true;
    timer_cancel(&worker->loop.timers, &acceptors->again);
    timer_cancel(&worker->loop.timers, &acceptors->refuse);
    timers_release(&worker->loop.timers, TIMERS);
    if (atomic_fetch_sub_explicit(&listeners->undrained, 1, memory_order_acq_rel) > 1)
        return;
    listeners_close(listeners, worker->foreign);
    if (write(listeners->event, &one, sizeof one) < 0)
        return; /* at its limit it is readable all the same */
}

/* ---- listeners ---- */

int listeners_add(struct listeners *listeners, int fd, const struct dp_listener *settings)
{
    const struct intercept *intercept;
    struct mosnhook_address here = {.port = 0};
    int result;

    if (listeners->count == MAX_LISTENERS)
        return -ENOSPC;
    if (settings->transport >= INTERCEPTS || settings->direction > DP_INBOUND)
        return -EINVAL;
    intercept = intercepts[settings->transport];
    if (intercept->is_tcp) {
        result = socket_tune(fd); /* accepted sockets inherit it */
        if (result < 0)
            return result;
        if (address_of_local(fd, &here) == 0 && address_is_loopback(&here))
            socket_tune_towards_this_host(fd);
    }
    listeners->each[listeners->count++] = (struct listener){
        .fd = fd,
        .port = here.port,
        .intercept = intercept,
        .settings = *settings,
    };
    return 0;
}

/* Closing the control socket may wait for descriptors that others passed on it. */
void listeners_close(struct listeners *listeners, struct foreign *foreign)
{
    for (size_t i = 0; i < listeners->count; i++)
        if (listeners->each[i].intercept->is_tcp)
            close(listeners->each[i].fd);
        else
            foreign_close_listener(foreign, listeners->each[i].fd);
}
