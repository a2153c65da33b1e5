#include "intercept/session.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/owner.h"
#include "base/sockaddr.h"
#include "intercept/clients.h"
#include "intercept/listener.h"
#include "net/budget.h"

struct session *session_open(struct worker *worker, const struct listener *listener,
                             const struct intercept_ops *ops, uint8_t fds)
{
    struct session *session = calloc(1, sizeof *session);

    if (!session || !timers_reserve(&worker->loop.timers, 1)) {
        budget_release(worker->budget, fds);
        free(session);
        return NULL;
    }
    session->worker = worker;
    session->ops = ops;
    session->origin.listener = &listener->settings;
    session->opened_real_ns = clock_ns(CLOCK_REALTIME);
    session->opened_ns = clock_ns(CLOCK_MONOTONIC);
    session->timer.index = TIMER_OFF;
    session->uid = UINT32_MAX;
    session->route = UINT32_MAX;
    session->fds_reserved = fds;
    channel_init(&session->downstream);
    atomic_init(&session->state, SESSION_ARRIVING);
    counter_add(&worker->counters.accepted, 1);
    worker->handler->opened(session);
    trace(worker, session->id, accepted, listener->settings.transport,
          listener->settings.direction);
    return session;
}

/* Which states may follow each, as bits. */
static const uint16_t following[] = {
    [SESSION_ARRIVING] = 1 << SESSION_EXPECTED | 1 << SESSION_CONNECTING | 1 << SESSION_FAILING |
                         1 << SESSION_DIRECT | 1 << SESSION_CLOSED,
    [SESSION_EXPECTED] = 1 << SESSION_CONNECTING | 1 << SESSION_CLOSED,
    [SESSION_CONNECTING] =
        1 << SESSION_COMPLETING | 1 << SESSION_FAILING | 1 << SESSION_SERVED | 1 << SESSION_CLOSED,
    [SESSION_COMPLETING] = 1 << SESSION_FAILING | 1 << SESSION_SERVED | 1 << SESSION_CLOSED,
    [SESSION_FAILING] = 1 << SESSION_CLOSED,
    [SESSION_SERVED] = 1 << SESSION_CLOSED,
    [SESSION_DIRECT] = 1 << SESSION_CLOSED,
    [SESSION_CLOSED] = 0,
};

void session_enter(struct session *session, enum session_state state)
{
    assert(following[session_state(session)] & 1 << state);
    (void)following; /* unused without assertions */
    if (state != SESSION_EXPECTED)
        clients_waited(session);
    atomic_store_explicit(&session->state, state, memory_order_release);
}

void session_release_fds(struct session *session, uint8_t keep)
{
    if (session->fds_reserved <= keep)
        return;
    clients_release_fds(session, session->fds_reserved - keep);
    budget_release(session->worker->budget, session->fds_reserved - keep);
    session->fds_reserved = keep;
}

void session_arrived(struct session *session)
{
    session_enter(session, SESSION_CONNECTING);
    session->worker->handler->arrived(session);
}

void session_completed(struct session *session)
{
    timer_cancel(&session->worker->loop.timers, &session->timer);
    session_release_fds(session, FDS_PER_RELAY);
    trace(session->worker, session->id, completed, 0, 0);
    session->serving->completed(session);
}

/* For a reason of ours: the application is to do what it does while there is no sidecar. */
static bool is_away(enum dp_end end)
{
    return end == DP_END_NO_RESOURCES || end == DP_END_TOO_MANY_FDS;
}

/* What the application finds: nothing of ours is the upstream's doing. */
static int error_to_tell(enum dp_end end, int error)
{
    return error == 0 || is_away(end) ? ECONNREFUSED : error;
}

void session_close(struct session *session, enum dp_end end, int error)
{
    struct worker *worker = session->worker;

    if (session_state(session) == SESSION_CLOSED) {
        assert(!"closed twice");
        return;
    }
    session->end = (uint8_t)end;
    session->error = error;
    session->closed_ns = clock_ns(CLOCK_MONOTONIC);
    timer_cancel(&worker->loop.timers, &session->timer);
    timers_release(&worker->loop.timers, 1);
    if (session->ops->abandon)
        session->ops->abandon(session, error_to_tell(end, error));
    if (session->serving)
        session->serving->close(session, end != DP_END_EOF);
    channel_close(&worker->loop, &session->downstream, end != DP_END_EOF);
    if (session->ops->release)
        session->ops->release(session);
    session_release_fds(session, 0);
    trace(worker, session->id, closed, end, error);
    /* Report before the state changes: who looks at open sessions, then at reports, does not miss
     * it. */
    worker->handler->closed(session);
    session_enter(session, SESSION_CLOSED);
    counter_add(&worker->counters.closed, 1);
    session->next_closed = worker->closed;
    worker->closed = session;
}

void session_refuse(struct session *session, enum dp_end end, int error)
{
    if (session_state(session) == SESSION_CLOSED)
        return;
    trace(session->worker, session->id, refused, end, error);
    if (!session->ops->refuse ||
        !session->ops->refuse(session, error_to_tell(end, error), is_away(end))) {
        session_close(session, end, error);
        return;
    }
    session->end = (uint8_t)end;
    session->error = error;
    if (session->serving)
        session->serving->close(session, true);
    session->serving = NULL;
    session_enter(session, SESSION_FAILING);
}

void session_arrival_expired(struct timer *timer)
{
    struct session *session = OWNER(timer, struct session, timer);

    trace(session->worker, session->id, expired, DP_TIMER_REQUEST, 0);
    session_close(session, DP_END_HEADER_TIMEOUT, 0);
}

void session_completing_expired(struct timer *timer)
{
    struct session *session = OWNER(timer, struct session, timer);

    trace(session->worker, session->id, expired, DP_TIMER_COMPLETE, 0);
    session_refuse(session, DP_END_DOWNSTREAM_GONE, ETIMEDOUT);
}

static void waiting_changed(struct channel *channel, uint32_t events)
{
    if (events & EPOLLERR)
        session_close(OWNER(channel, struct session, downstream), DP_END_DOWNSTREAM_RESET,
                      ECONNRESET);
}

void session_downstream_waits(struct session *session)
{
    session->downstream.changed = waiting_changed;
}

void session_free(struct session *session)
{
    assert(session_state(session) == SESSION_CLOSED && !session->intercepted);
    assert(!timer_is_set(&session->timer) && !channel_is_open(&session->downstream));
    free(session->served);
    free(session);
}

/* ---- sessions that are connected from the beginning ---- */

const struct intercept_ops intercept_connected = {.complete = session_completed};

struct session *session_accept(struct worker *worker, const struct listener *listener, int fd)
{
    struct session *session = session_open(worker, listener, &intercept_connected, FDS_PER_RELAY);

    if (!session) {
        close(fd);
        return NULL;
    }
    session->downstream.watch.fd = fd;
    if (address_of_peer(fd, &session->origin.source) < 0) {
        session_close(session, DP_END_DOWNSTREAM_RESET, ECONNRESET);
        return NULL;
    }
    return session;
}

void session_accepted(struct session *session, int error)
{
    struct worker *worker = session->worker;

    trace_address(worker, session->id, requested, &session->origin.original_destination);
    session_downstream_waits(session);
    if (error == 0)
        error = channel_watch(&worker->loop, &session->downstream);
    if (error < 0)
        session_close(session, DP_END_NO_RESOURCES, -error);
    else
        session_arrived(session);
}

void session_refuse_connected(struct worker *worker, const struct listener *listener, int fd)
{
    struct session *session = session_open(worker, listener, &intercept_connected, 0);

    if (!session) {
        close(fd);
        return;
    }
    session->downstream.watch.fd = fd;
    (void)address_of_peer(fd, &session->origin.source);
    session_close(session, DP_END_NO_RESOURCES, EMFILE);
}
