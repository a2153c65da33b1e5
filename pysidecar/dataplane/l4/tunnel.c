#include "l4/tunnel.h"

#include <errno.h>
#include <stdlib.h>

#include "base/owner.h"
#include "net/socket.h"
#include "upstream/connector.h"

/* An upstream that is being connected. */
struct attempt {
    struct connector connector;
    struct tunnel *tunnel;
};

/* ---- relaying ---- */

/* A side was reset. Delivers what that side sent before, as far as the other takes it at once, then
 * resets the other, too. No end comes before: it would look as if everything had arrived. */
static void tunnel_fail(struct tunnel *tunnel)
{
    struct session *session = tunnel->session;
    enum dp_end end = session->end;
    int error = session->error;
    int failed = end == DP_END_DOWNSTREAM_RESET ? DOWNSTREAM : UPSTREAM;

    tunnel_side(tunnel, failed)->readable = true;
    while (flow_run(tunnel, failed, false) == PROGRESS_BATCH)
        ;
    session_close(session, end, error);
}

static void tunnel_run(struct tunnel *tunnel)
{
    enum progress progress[2];

    for (int from = DOWNSTREAM; from <= UPSTREAM; from++) {
        progress[from] = flow_run(tunnel, from, true);
        if (progress[from] == PROGRESS_FAILED) {
            tunnel_fail(tunnel);
            return;
        }
        if (progress[from] == PROGRESS_LOST) {
            session_close(tunnel->session, DP_END_NO_RESOURCES, ENOMEM);
            return;
        }
    }
    if (progress[DOWNSTREAM] == PROGRESS_DONE && progress[UPSTREAM] == PROGRESS_DONE) {
        session_close(tunnel->session, DP_END_EOF, 0);
        return;
    }
    if (progress[DOWNSTREAM] == PROGRESS_BATCH || progress[UPSTREAM] == PROGRESS_BATCH)
        tunnel_go_on(tunnel);
    if (tunnel->ops && tunnel->ops->ran)
        tunnel->ops->ran(tunnel);
}

static void side_changed(struct tunnel *tunnel, int side, uint32_t events)
{
    int error;

    if (events & EPOLLOUT && tunnel->ops && tunnel->ops->writable)
        tunnel->ops->writable(tunnel, side);
    if (!(events & EPOLLERR)) {
        tunnel_run(tunnel);
        return;
    }
    /* Even if backpressure keeps us from reading this side: a reset does not wait. */
    error = socket_take_error(tunnel_side(tunnel, side)->watch.fd);
    flow_side_failed(tunnel, side, error ? error : ECONNRESET);
    tunnel_fail(tunnel);
}

static void downstream_changed(struct channel *channel, uint32_t events)
{
    side_changed(OWNER(channel, struct session, downstream)->served, DOWNSTREAM, events);
}

static void upstream_changed(struct channel *channel, uint32_t events)
{
    side_changed(OWNER(channel, struct tunnel, upstream), UPSTREAM, events);
}

static void task_run(struct task *task)
{
    tunnel_run(OWNER(task, struct tunnel, task));
}

void tunnel_go_on(struct tunnel *tunnel)
{
    task_schedule(&tunnel_worker(tunnel)->loop.tasks, &tunnel->task);
}

/* ---- its timer: idle, or ops' ---- */

static void tunnel_expired(struct timer *timer)
{
    struct session *session = OWNER(timer, struct session, timer);
    struct worker *worker = session->worker;
    struct tunnel *tunnel = session->served;
    uint64_t next = UINT64_MAX, idle_deadline;

    if (tunnel->ops && tunnel->ops->tick)
        next = tunnel->ops->tick(tunnel);
    idle_deadline = tunnel->last_active_ms + timeout_of(&worker->timeouts->idle_ms);
    if (idle_deadline <= worker->loop.now_ms) {
        trace(worker, session->id, expired, DP_TIMER_IDLE, 0);
        session_close(session, DP_END_IDLE_TIMEOUT, 0);
    } else {
        tunnel_tick_in(tunnel, (next < idle_deadline ? next : idle_deadline) - worker->loop.now_ms);
    }
}

void tunnel_tick_in(struct tunnel *tunnel, uint64_t ms)
{
    loop_set_timer(&tunnel_worker(tunnel)->loop, &tunnel->session->timer, ms, tunnel_expired);
}

/* ---- life ---- */

static void tunnel_completed(struct session *session)
{
    struct tunnel *tunnel = session->served;
    struct worker *worker = session->worker;

    tunnel->last_active_ms = worker->loop.now_ms;
    tunnel->task.run = task_run;
    session->downstream.changed = downstream_changed;
    tunnel->upstream.changed = upstream_changed;
    tunnel_tick_in(tunnel, timeout_of(&worker->timeouts->idle_ms));
    tunnel->ops = worker->handler->flow_ops(tunnel);
    if (session_state(session) != SESSION_SERVED)
        session_enter(session, SESSION_SERVED);
    tunnel_run(tunnel);
}

static void end_attempt(struct tunnel *tunnel)
{
    free(tunnel->attempt);
    tunnel->attempt = NULL;
}

static void tunnel_close(struct session *session, bool reset)
{
    struct tunnel *tunnel = session->served;
    struct worker *worker = session->worker;
    struct choice choice = {.cluster = tunnel->cluster, .endpoint = tunnel->endpoint};

    task_cancel(&worker->loop.tasks, &tunnel->task);
    if (!channel_is_open(&tunnel->upstream) && tunnel->attempt) {
        connector_cancel(&tunnel->attempt->connector);
        choice = tunnel->attempt->connector.choice;
        end_attempt(tunnel);
    }
    if (tunnel->ops && tunnel->ops->stop)
        tunnel->ops->stop(tunnel);
    flow_release(tunnel, DOWNSTREAM);
    flow_release(tunnel, UPSTREAM);
    channel_close(&worker->loop, &tunnel->upstream, reset);
    if (tunnel->ops && tunnel->ops->release)
        tunnel->ops->release(tunnel);
    choice_release(&choice);
    session->served = NULL;
    free(tunnel);
}

static const struct serving tunnel_serving = {
    .completed = tunnel_completed,
    .close = tunnel_close,
};

/* An application whose connect has succeeded finds its connection reset. */
static void give_up(struct session *session, enum dp_end end, int error)
{
    if (session_state(session) == SESSION_SERVED)
        session_close(session, end, error);
    else
        session_refuse(session, end, error);
}

/* `fd`: see struct connector. */
static void connector_done(struct connector *connector, int fd)
{
    struct tunnel *tunnel = OWNER(connector, struct attempt, connector)->tunnel;
    struct session *session = tunnel->session;

    tunnel->cluster = connector->choice.cluster;
    tunnel->endpoint = connector->choice.endpoint;
    session->upstream = connector->choice.upstream;
    end_attempt(tunnel);
    if (fd >= 0) {
        tunnel->upstream.watch.fd = fd;
        tunnel->upstream.writable = true;
        if (channel_watch(&session->worker->loop, &tunnel->upstream) < 0)
            fd = -ENOMEM;
    }
    if (fd < 0)
        give_up(session, connector_end(-fd), -fd);
    else if (session_state(session) == SESSION_SERVED)
        tunnel_completed(session);
    else
        session->ops->complete(session);
}

struct tunnel *tunnel_create(struct session *session)
{
    struct tunnel *tunnel = calloc(1, sizeof *tunnel);

    if (!tunnel)
        return NULL;
    tunnel->session = session;
    channel_init(&tunnel->upstream);
    return tunnel;
}

void tunnel_free(struct tunnel *tunnel)
{
    flow_release(tunnel, DOWNSTREAM);
    flow_release(tunnel, UPSTREAM);
    free(tunnel);
}

void tunnel_adopt(struct tunnel *tunnel, int fd)
{
    struct session *session = tunnel->session;

    session->served = tunnel;
    session->serving = &tunnel_serving;
    tunnel->upstream.watch.fd = fd;
    tunnel->upstream.writable = true;
    if (channel_watch(&session->worker->loop, &tunnel->upstream) < 0)
        session_close(session, DP_END_NO_RESOURCES, ENOMEM);
    else
        tunnel_completed(session);
}

void tunnel_start(struct session *session, const struct choice *choice)
{
    struct tunnel *tunnel = tunnel_create(session);
    struct attempt *attempt = calloc(1, sizeof *attempt);

    if (!tunnel || !attempt) {
        struct choice unused = *choice;

        free(tunnel);
        free(attempt);
        choice_release(&unused);
        session->serving = NULL;
        give_up(session, DP_END_NO_RESOURCES, ENOMEM);
        return;
    }
    if (session_state(session) == SESSION_SERVED)
        session_downstream_waits(session);
    tunnel->attempt = attempt;
    session->served = tunnel;
    session->serving = &tunnel_serving;
    attempt->tunnel = tunnel;
    attempt->connector = (struct connector){
        .worker = session->worker,
        .session = session->id,
        .origin = &session->origin,
        .choice = *choice,
        .done = connector_done,
    };
    connector_start(&attempt->connector);
}
