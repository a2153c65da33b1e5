#include <errno.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

enum {
    EVENT_BATCH = 256,
    REFUSE_BATCH = 256,  /* connections that wait for fds */
    DRAIN_BATCH = 16384, /* more than wait at all listeners, unless they come faster than we take */
};

/* Single writer, so a plain addition; atomic for the control thread that reads. */
void worker_count(_Atomic uint64_t *counter, int64_t change)
{
    atomic_store_explicit(counter,
                          atomic_load_explicit(counter, memory_order_relaxed) + (uint64_t)change,
                          memory_order_relaxed);
}

int worker_watch(struct worker *worker, struct watch *watch, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = watch};

    return epoll_ctl(worker->epoll, EPOLL_CTL_ADD, watch->fd, &event) < 0 ? -errno : 0;
}

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

void worker_add_runnable(struct worker *worker, struct connection *connection)
{
    if (connection->previous_runnable)
        return;
    connection->next_runnable = NULL;
    connection->previous_runnable = worker->runnable_tail;
    *worker->runnable_tail = connection;
    worker->runnable_tail = &connection->next_runnable;
    worker->runnable_count++;
}

void worker_remove_runnable(struct worker *worker, struct connection *connection)
{
    if (!connection->previous_runnable)
        return;
    *connection->previous_runnable = connection->next_runnable;
    if (connection->next_runnable)
        connection->next_runnable->previous_runnable = connection->previous_runnable;
    else
        worker->runnable_tail = connection->previous_runnable;
    connection->previous_runnable = NULL;
    worker->runnable_count--;
}

static void update_clock(struct worker *worker)
{
    worker->now_ns = clock_ns(CLOCK_MONOTONIC);
    worker->now_ms = worker->now_ns / 1000000u;
}

/* ---- accepting ---- */

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

static void set_accepting(struct worker *worker, bool on)
{
    struct dp *dp = worker->dp;

    if (worker->accepting == on)
        return;
    worker->accepting = on;
    for (size_t i = 0; i < dp->listener_count; i++) {
        struct watch *watch = &dp->listeners[i].watch;

        if (on)
            /* Only one of the workers is woken for a connection. */
            worker_watch(worker, watch, EPOLLIN | EPOLLEXCLUSIVE);
        else
            epoll_ctl(worker->epoll, EPOLL_CTL_DEL, watch->fd, NULL);
    }
}

static void leave_accepting(struct worker *worker, bool to_others)
{
    set_accepting(worker, false);
    worker->leaves_to_others = to_others;
    worker->accept_again_ms = worker->now_ms + ACCEPT_PAUSE_MS;
}

/* Out of fds or memory: the listeners are not watched for a while, since a listener that is ready
 * and cannot be served would spin. */
static void pause_accepting(struct worker *worker)
{
    leave_accepting(worker, false);
    worker_count(&worker->counters.accept_pauses, 1);
}

/* False when there are not enough fds for one more connection. */
static bool reserve_fds(struct worker *worker, int count)
{
    struct dp *dp = worker->dp;

    for (int attempt = 0; attempt < 2; attempt++) {
        if (atomic_fetch_add_explicit(&dp->fds_reserved, count, memory_order_relaxed) + count +
                reapers_pending(dp->reapers) <=
            dp->fds_budget)
            return true;
        atomic_fetch_sub_explicit(&dp->fds_reserved, count, memory_order_relaxed);
        relay_close_pool(worker); /* connections go before pipes that nobody uses */
    }
    return false;
}

enum taken {
    TAKEN_ONE,
    TAKEN_NONE,  /* nobody waits */
    TAKEN_SHORT, /* somebody does, but we are out of something */
};

/* Takes a connection that waits at the listener; `refuse`: also where there are no fds for it, only
 * to refuse it. */
static enum taken take_one(struct worker *worker, const struct listener *listener, bool refuse)
{
    const struct transport *transport = &transports[listener->settings.transport];
    struct dp *dp = worker->dp;
    bool serve = reserve_fds(worker, transport->fds);
    int fd;

    if (!serve && !refuse)
        return TAKEN_SHORT;
    fd = accept4(listener->watch.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
        (serve ? transport->accept : transport->refuse)(worker, listener, fd);
        return TAKEN_ONE;
    }
    if (serve)
        atomic_fetch_sub_explicit(&dp->fds_reserved, transport->fds, memory_order_relaxed);
    if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
        atomic_store_explicit(&dp->full_until_ms, worker->now_ms + REFUSE_AFTER_MS,
                              memory_order_relaxed);
        return TAKEN_SHORT;
    }
    return errno == ECONNABORTED || errno == EINTR ? TAKEN_ONE : TAKEN_NONE;
}

/* Up to a batch of what waits at the listener. */
static void accept_waiting(struct worker *worker, const struct listener *listener)
{
    for (int i = 0; i < ACCEPT_BATCH; i++) {
        enum taken taken = take_one(worker, listener, false);

        if (taken == TAKEN_NONE)
            return;
        if (taken == TAKEN_ONE)
            continue;
        pause_accepting(worker);
        if (!worker->refuse_at_ms)
            worker->refuse_at_ms = worker->now_ms + REFUSE_AFTER_MS;
        return;
    }
}

/* ---- out of fds ---- */

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

/* Who came when there were no fds has waited for a second. (How long each has waited, the kernel
 * does not say: those that came later have waited for less.) */
static void refuse_waiting(struct worker *worker)
{
    if (worker->refuse_at_ms && worker->refuse_at_ms <= worker->now_ms && !worker->drained &&
        take_all(worker, REFUSE_BATCH))
        worker->refuse_at_ms = 0;
}

int fds_used(const struct dp *dp)
{
    return atomic_load_explicit(&dp->fds_reserved, memory_order_relaxed) +
           reapers_pending(dp->reapers);
}

/* So many are left when the page begins to say that we are full: for requests on their way. */
static int fds_kept(const struct dp *dp)
{
    int kept = dp->fds_budget / 32;

    if (kept < 2 * FDS_PER_REQUEST)
        kept = 2 * FDS_PER_REQUEST;
    return kept < dp->fds_budget / 4 ? kept : dp->fds_budget / 4;
}

static void set_full(struct dp *dp, bool full)
{
    uint64_t one = 1;

    if (atomic_exchange(&dp->full, full) == full)
        return;
    /* Another worker may be here, too: the last word is that of `full`. */
    do {
        full = atomic_load(&dp->full);
        if (dp->page)
            __atomic_store_n(&dp->page->full, full, __ATOMIC_SEQ_CST);
    } while (full != atomic_load(&dp->full));
    if (write(dp->event, &one, sizeof one) < 0)
        return; /* at its limit it is readable all the same */
}

static void look_at_fds(struct worker *worker)
{
    struct dp *dp = worker->dp;
    int free = dp->fds_budget - fds_used(dp);
    bool refused = worker->now_ms < atomic_load_explicit(&dp->full_until_ms, memory_order_relaxed);

    if (!atomic_load_explicit(&dp->full, memory_order_relaxed)) {
        if (refused || free < fds_kept(dp))
            set_full(dp, true);
        return;
    }
    relay_close_pool(worker);
    if (!refused && free >= 2 * fds_kept(dp))
        set_full(dp, false);
}

static uint64_t connections_of(const struct worker *worker)
{
    const struct counters *counters = &worker->counters;

    return atomic_load_explicit(&counters->accepted, memory_order_relaxed) -
           atomic_load_explicit(&counters->closed, memory_order_relaxed);
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
static void accept_batch(struct worker *worker, const struct listener *listener)
{
    struct dp *dp = worker->dp;

    if (!worker->accepting)
        return;
    accept_waiting(worker, listener);
    if (!worker->accepting || !has_too_many(worker))
        return;
    leave_accepting(worker, true);
    /* Those for which we were woken meanwhile: nobody else was. */
    for (size_t i = 0; i < dp->listener_count; i++)
        accept_waiting(worker, &dp->listeners[i]);
}

static void go_on_accepting(struct worker *worker)
{
    if (worker->accepting || worker->drained)
        return;
    if (worker->now_ms < worker->accept_again_ms &&
        (!worker->leaves_to_others || has_too_many(worker)))
        return;
    set_accepting(worker, true);
}

void worker_leave_listeners(struct worker *worker)
{
    struct dp *dp = worker->dp;

    if (worker->drained)
        return;
    set_accepting(worker, false);
    worker->drained = true;
    if (atomic_fetch_sub_explicit(&dp->undrained, 1, memory_order_acq_rel) > 1)
        return;
    for (size_t i = 0; i < dp->listener_count; i++)
        if (dp->listeners[i].settings.transport == DP_TRANSPORT_UNIX)
            foreign_close_listener(dp, dp->listeners[i].watch.fd);
        else
            close(dp->listeners[i].watch.fd);
}

/* Takes what the listeners still hold (those clients believe to be served), then lets go. */
static void drain_listeners(struct worker *worker)
{
    struct dp *dp = worker->dp;

    if (worker->drained || !atomic_load_explicit(&dp->draining, memory_order_acquire))
        return;
    (void)take_all(worker, DRAIN_BATCH);
    worker_leave_listeners(worker);
}

/* ---- the loop ---- */

static void dispatch(struct worker *worker, struct watch *watch, uint32_t events)
{
    struct connection *connection = NULL;
    enum phase phase;
    uint64_t count;

    switch (watch->kind) {
    case WATCH_LISTENER:
        accept_batch(worker, (void *)((char *)watch - offsetof(struct listener, watch)));
        return;
    case WATCH_MAIL:
        if (read(watch->fd, &count, sizeof count) < 0)
            return; /* another turn took it */
        return;
    case WATCH_FREED:
        direct_events(worker);
        return;
    case WATCH_REQUEST:
        connection = (void *)((char *)watch - offsetof(struct connection, request));
        break;
    case WATCH_DOWNSTREAM:
        connection = (void *)((char *)watch - offsetof(struct connection, side[DOWNSTREAM].watch));
        break;
    case WATCH_UPSTREAM:
        connection = (void *)((char *)watch - offsetof(struct connection, side[UPSTREAM].watch));
        break;
    }
    /* An earlier event of the same turn may have closed it, or replaced the upstream. */
    phase = atomic_load_explicit(&connection->phase, memory_order_relaxed);
    if (phase == PHASE_CLOSED || watch->fd < 0)
        return;
    if (watch->kind == WATCH_REQUEST)
        control_event(connection);
    else if (phase == PHASE_RELAYING)
        relay_event(connection, watch->kind == WATCH_UPSTREAM ? UPSTREAM : DOWNSTREAM, events);
    else if (watch->kind == WATCH_UPSTREAM && phase == PHASE_CONNECTING)
        upstream_event(connection, events);
    else if (watch->kind == WATCH_UPSTREAM)
        upstream_waits_event(connection, events);
    else if (phase == PHASE_COMPLETING && connection->parked)
        park_completing_event(connection, events);
    else if (phase == PHASE_FAILING)
        park_failing_event(connection);
    else if (phase == PHASE_COMPLETING || phase == PHASE_EXPECTED)
        unparked_event(connection);
    else
        header_event(connection, events);
}

static void expire(struct connection *connection)
{
    switch (atomic_load_explicit(&connection->phase, memory_order_relaxed)) {
    case PHASE_REQUEST:
    case PHASE_HEADER:
        connection_close(connection, DP_END_HEADER_TIMEOUT, 0);
        break;
    case PHASE_CONNECTING:
        upstream_timeout(connection);
        break;
    case PHASE_EXPECTED:
        connection_close(connection, DP_END_DOWNSTREAM_GONE, 0);
        break;
    case PHASE_COMPLETING:
        connection_refuse(connection, DP_END_DOWNSTREAM_GONE, ETIMEDOUT);
        break;
    case PHASE_FAILING:
        park_failing_event(connection);
        break;
    case PHASE_DIRECT:
        direct_expire(connection);
        break;
    default:
        relay_timeout(connection);
    }
}

/* Those that are queued now; who has more to do queues up again, for the next turn. */
static void run_runnable(struct worker *worker)
{
    for (size_t left = worker->runnable_count; left > 0 && worker->runnable_head; left--) {
        struct connection *connection = worker->runnable_head;

        worker_remove_runnable(worker, connection);
        relay_run(connection);
    }
}

static int time_to_wait(const struct worker *worker)
{
    uint64_t until = worker->now_ms + 60000;

    if (worker->runnable_head)
        return 0;
    if (worker->dp->page)
        until = worker->now_ms + MOSNHOOK_ALIVE_INTERVAL_MS;
    if (worker->timers.count > 0 && worker->timers.heap[0]->deadline_ms < until)
        until = worker->timers.heap[0]->deadline_ms;
    if (!worker->accepting && !worker->drained && worker->accept_again_ms < until)
        until = worker->accept_again_ms;
    if (worker->refuse_at_ms && !worker->drained && worker->refuse_at_ms < until)
        until = worker->refuse_at_ms;
    return until > worker->now_ms ? (int)(until - worker->now_ms) : 0;
}

static int wait_for_events(struct worker *worker, struct epoll_event *events)
{
    int timeout_ms = time_to_wait(worker);
    struct timespec timeout = {0};
    uint64_t poll_ns;

    if (!worker->polled)
        return epoll_wait(worker->epoll, events, EVENT_BATCH, timeout_ms);
    poll_ns = worker->poll_at_ns > worker->now_ns ? worker->poll_at_ns - worker->now_ns : 0;
    timeout.tv_nsec = (long)(timeout_ms == 0 ? 0 : poll_ns < 1000000 ? poll_ns : 999999);
    return epoll_pwait2(worker->epoll, events, EVENT_BATCH, &timeout, NULL);
}

/* The sidecar is alive while any worker is: listeners are shared, so whoever is not stuck serves.
 * The workers share the page's cache line, too, and leave it alone while it is fresh. */
static void show_sign_of_life(const struct worker *worker)
{
    struct mosnhook_page *page = worker->dp->page;
    uint64_t half_ns = MOSNHOOK_ALIVE_INTERVAL_MS * 500000u;

    if (page && worker->now_ns > __atomic_load_n(&page->alive_ns, __ATOMIC_RELAXED) + half_ns)
        __atomic_store_n(&page->alive_ns, worker->now_ns, __ATOMIC_RELEASE);
}

void worker_turn(struct worker *worker)
{
    struct epoll_event events[EVENT_BATCH];
    struct connection *connection;
    int count;

    show_sign_of_life(worker);
    count = wait_for_events(worker, events);
    update_clock(worker);
    for (uint32_t which = 0; which < TABLES; which++)
        worker_table(worker, which);
    direct_take_reused(worker);
    for (int i = 0; i < count; i++)
        dispatch(worker, events[i].data.ptr, events[i].events);
    accelerate_poll(worker);
    run_runnable(worker);
    while ((connection = timer_expired(&worker->timers, worker->now_ms)))
        expire(connection);
    go_on_accepting(worker);
    refuse_waiting(worker);
    look_at_fds(worker);
    drain_listeners(worker);
    connections_hand_over(worker);
}

void *worker_run(void *argument)
{
    struct worker *worker = argument;

    update_clock(worker);
    set_accepting(worker, true);
    while (!atomic_load_explicit(&worker->dp->stopping, memory_order_acquire))
        worker_turn(worker);
    return NULL;
}
