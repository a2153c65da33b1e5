/* Moving bytes between the two sides of a connection.
 *
 * Small traffic goes through the worker's scratch memory (recv, send), bulk through a pipe
 * (splice): which one is chosen by what the direction does, not once for all. Bytes that were read
 * and could not be sent wait in a chunk or in the pipe; until they are gone nothing more is read
 * (that is the backpressure), and a direction that waits for nothing holds no memory.
 *
 * An urgent byte stays at its place in the stream (SO_OOBINLINE). A read ends before it, and
 * splice() never passes it, so it is what the next read begins with: it is asked for (SIOCATMARK)
 * wherever that is not known, read alone, and sent as urgent.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

enum {
    FULL_READS_TO_SPLICE = 4,  /* consecutive reads that filled the scratch memory */
    SMALL_SPLICES_TO_COPY = 8, /* consecutive splices below SMALL_SPLICE */
    SMALL_SPLICE = 16 * 1024,
};

enum progress {
    PROGRESS_BLOCKED, /* nothing more to do until an event */
    PROGRESS_BATCH,   /* there is more to do, but others first */
    PROGRESS_DONE,    /* everything was passed on, the end included */
    PROGRESS_FAILED,  /* a side was reset; connection->error says how */
    PROGRESS_LOST,    /* bytes that were read cannot be kept: nothing may follow the gap */
};

/* ---- pipes ---- */

static struct pipe *pipe_acquire(struct worker *worker)
{
    struct pipe *pipe = worker->pipes;
    struct dp *dp = worker->dp;
    int ends[2];

    if (pipe) {
        worker->pipes = pipe->next;
        worker->pooled_pipes--;
        counter_add(&worker->counters.buffers, 1);
        return pipe;
    }
    /* Copying works without fds: the last of them are for connections. */
    if (atomic_fetch_add_explicit(&dp->fds_reserved, 2, memory_order_relaxed) + 2 >
        dp->fds_budget / 8 * 7)
        goto no_fds;
    pipe = calloc(1, sizeof *pipe);
    if (!pipe || pipe2(ends, O_NONBLOCK | O_CLOEXEC) < 0) {
        free(pipe);
        goto no_fds;
    }
    /* An unprivileged user may have used up his pipe pages: a small pipe works too. */
    (void)fcntl(ends[1], F_SETPIPE_SZ, PIPE_SIZE);
    pipe->read_end = ends[0];
    pipe->write_end = ends[1];
    counter_add(&worker->counters.buffers, 1);
    return pipe;

no_fds:
    atomic_fetch_sub_explicit(&dp->fds_reserved, 2, memory_order_relaxed);
    return NULL;
}

static void pipe_close(struct worker *worker, struct pipe *pipe)
{
    close(pipe->read_end);
    close(pipe->write_end);
    free(pipe);
    atomic_fetch_sub_explicit(&worker->dp->fds_reserved, 2, memory_order_relaxed);
}

static void pipe_give_back(struct worker *worker, struct pipe *pipe)
{
    counter_add(&worker->counters.buffers, -1);
    if (pipe->held > 0 || worker->pooled_pipes == POOLED_PIPES) {
        pipe_close(worker, pipe);
        return;
    }
    pipe->next = worker->pipes;
    worker->pipes = pipe;
    worker->pooled_pipes++;
}

void relay_close_pool(struct worker *worker)
{
    while (worker->pipes) {
        struct pipe *pipe = worker->pipes;

        worker->pipes = pipe->next;
        pipe_close(worker, pipe);
    }
    worker->pooled_pipes = 0;
}

/* ---- one direction ---- */

static void release_chunk(struct worker *worker, struct flow *flow)
{
    if (!flow->chunk)
        return;
    free(flow->chunk);
    flow->chunk = NULL;
    counter_add(&worker->counters.buffers, -1);
}

static void release_pipe(struct worker *worker, struct flow *flow)
{
    if (!flow->pipe)
        return;
    pipe_give_back(worker, flow->pipe);
    flow->pipe = NULL;
}

void relay_count_bytes(struct connection *connection, int from, size_t bytes)
{
    struct flow *flow = &connection->flow[from];
    uint64_t sum = atomic_load_explicit(&flow->bytes, memory_order_relaxed) + bytes;

    atomic_store_explicit(&flow->bytes, sum, memory_order_relaxed);
    counter_add(&connection->worker->counters.bytes[from], (int64_t)bytes);
    connection->last_active_ms = connection->worker->loop.now_ms;
}

static void passed_on(struct connection *connection, int from, size_t bytes)
{
    relay_count_bytes(connection, from, bytes);
    if (from == DOWNSTREAM && connection->accelerated)
        accelerate_forwarded(connection, bytes);
}

/* The side `index` was reset, as an operation on it told. */
static enum progress side_failed(struct connection *connection, int index, int error)
{
    connection->end = index == DOWNSTREAM ? DP_END_DOWNSTREAM_RESET : DP_END_UPSTREAM_RESET;
    connection->error = error == EPIPE ? ECONNRESET : error;
    return PROGRESS_FAILED;
}

/* Sends the flow's chunk. True when it is gone; else `progress` says why not. */
static bool flush_chunk(struct connection *connection, int from, enum progress *progress)
{
    struct flow *flow = &connection->flow[from];
    struct side *to = &connection->side[!from];
    struct chunk *chunk = flow->chunk;
    ssize_t sent = send(to->watch.fd, chunk->data + chunk->start, chunk->end - chunk->start,
                        MSG_NOSIGNAL | chunk->flags);

    if (sent < 0 && errno != EAGAIN && errno != EINTR) {
        *progress = side_failed(connection, !from, errno);
        return false;
    }
    if (sent > 0) {
        passed_on(connection, from, (size_t)sent);
        chunk->start += (uint32_t)sent;
    }
    if (chunk->start < chunk->end) {
        to->writable = false;
        *progress = PROGRESS_BLOCKED;
        return false;
    }
    release_chunk(connection->worker, flow);
    return true;
}

/* Sends what the flow's pipe holds. As flush_chunk. */
static bool flush_pipe(struct connection *connection, int from, enum progress *progress)
{
    struct flow *flow = &connection->flow[from];
    struct side *to = &connection->side[!from];

    while (flow->pipe->held > 0) {
        ssize_t sent = splice(flow->pipe->read_end, NULL, to->watch.fd, NULL, flow->pipe->held,
                              SPLICE_F_MOVE | SPLICE_F_NONBLOCK);

        if (sent < 0 && errno != EAGAIN && errno != EINTR) {
            *progress = side_failed(connection, !from, errno);
            return false;
        }
        if (sent <= 0) {
            to->writable = false;
            *progress = PROGRESS_BLOCKED;
            return false;
        }
        flow->pipe->held -= (size_t)sent;
        passed_on(connection, from, (size_t)sent);
        counter_add(&connection->worker->counters.bytes_spliced, sent);
    }
    return true;
}

/* What to do after a read of `count` bytes, where `wanted` were asked for: false when the side has
 * nothing more for now. A short read means that the socket was empty; only an end or an urgent byte
 * that is already there would not be announced again, so then reading goes on to it. */
static bool after_read(struct connection *connection, int from, ssize_t count, size_t wanted,
                       enum progress *progress)
{
    struct side *side = &connection->side[from];

    side->plain = false;
    side->read_ns = connection->worker->loop.now_ns;
    if (count == 0) {
        side->ended = true;
        return true;
    }
    if (count < 0 && errno == EINTR)
        return true;
    if (count < 0 && errno != EAGAIN) {
        *progress = side_failed(connection, from, errno);
        return false;
    }
    if (count < 0 || ((size_t)count < wanted && !side->hung_up && !side->urgent))
        side->readable = false;
    if (count < 0)
        side->urgent = false; /* it is announced again when what comes before it is there */
    *progress = PROGRESS_BLOCKED;
    return count > 0;
}

static void set_splicing(struct connection *connection, int from, bool on)
{
    struct flow *flow = &connection->flow[from];

    if (on)
        on = accelerate_splice(connection, from);
    else
        accelerate_copy(connection, from);
    flow->splicing = on;
    flow->streak = 0;
}

/* Sends what was read to the scratch memory, and keeps what is not taken. False when this direction
 * cannot go on. */
static bool pass_on(struct connection *connection, int from, size_t count, int flags,
                    enum progress *progress)
{
    struct worker *worker = connection->worker;
    struct flow *flow = &connection->flow[from];
    struct side *to = &connection->side[!from];
    ssize_t sent = send(to->watch.fd, worker->scratch, count, MSG_NOSIGNAL | flags);
    size_t left;

    if (sent < 0 && errno != EAGAIN && errno != EINTR) {
        *progress = side_failed(connection, !from, errno);
        return false;
    }
    if (sent > 0)
        passed_on(connection, from, (size_t)sent);
    else
        sent = 0;
    left = count - (size_t)sent;
    if (left == 0)
        return true;
    flow->chunk = malloc(sizeof *flow->chunk + left);
    if (!flow->chunk) {
        *progress = PROGRESS_LOST;
        return false;
    }
    counter_add(&worker->counters.buffers, 1);
    flow->chunk->start = 0;
    flow->chunk->end = (uint32_t)left;
    flow->chunk->flags = flags;
    memcpy(flow->chunk->data, worker->scratch + sent, left);
    to->writable = false;
    *progress = PROGRESS_BLOCKED;
    return false;
}

/* Reads once and passes on what can be passed on. As pass_on. */
static bool copy_once(struct connection *connection, int from, enum progress *progress)
{
    struct worker *worker = connection->worker;
    struct flow *flow = &connection->flow[from];
    bool to_application = from == UPSTREAM && connection->accelerated;
    uint64_t redirected = to_application ? accelerate_redirected(connection) : 0;
    ssize_t count = recv(connection->side[from].watch.fd, worker->scratch, SCRATCH_SIZE, 0);
    bool going_on;

    if (!after_read(connection, from, count,
                    accelerate_reads_both(connection, from) ? 0 : SCRATCH_SIZE, progress))
        return false;
    if (count <= 0)
        return true;
    connection->round_trips += from == DOWNSTREAM && connection->last_read == UPSTREAM;
    connection->last_read = (uint8_t)from;
    flow->streak = count == SCRATCH_SIZE ? flow->streak + 1 : 0;
    if (flow->streak >= FULL_READS_TO_SPLICE)
        set_splicing(connection, from, true);
    going_on = pass_on(connection, from, (size_t)count, 0, progress);
    if (to_application)
        accelerate_sent(connection, count == SCRATCH_SIZE, redirected);
    return going_on;
}

/* The next byte is an urgent one. As copy_once. */
static bool copy_urgent(struct connection *connection, int from, enum progress *progress)
{
    struct side *side = &connection->side[from];
    ssize_t count = recv(side->watch.fd, connection->worker->scratch, 1, 0);

    if (!after_read(connection, from, count, 0, progress))
        return false;
    if (count <= 0)
        return true;
    side->urgent = false;
    if (connection->accelerated)
        accelerate_leave(connection);
    return pass_on(connection, from, 1, MSG_OOB, progress);
}

/* As copy_once. */
static bool splice_once(struct connection *connection, int from, enum progress *progress)
{
    struct flow *flow = &connection->flow[from];
    ssize_t count;

    if (!flow->pipe) {
        flow->pipe = pipe_acquire(connection->worker);
        if (!flow->pipe) {
            set_splicing(connection, from, false);
            return true;
        }
    }
    count = splice(connection->side[from].watch.fd, NULL, flow->pipe->write_end, NULL, PIPE_SIZE,
                   SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    /* Before an urgent byte it says 0, as at an end, where the end has come too: recv() tells. */
    if (count == 0) {
        set_splicing(connection, from, false);
        return true;
    }
    /* A full pipe and an empty socket look alike, but the pipe is empty here. And a short splice
     * says nothing about the socket: the pipe may have run out of slots. */
    if (!after_read(connection, from, count, 0, progress))
        return false;
    if (count <= 0)
        return true;
    flow->pipe->held += (size_t)count;
    flow->streak = count < SMALL_SPLICE ? flow->streak + 1 : 0;
    if (flow->streak >= SMALL_SPLICES_TO_COPY)
        set_splicing(connection, from, false);
    return flush_pipe(connection, from, progress);
}

static bool is_at_mark(const struct side *side)
{
    int at_mark = 0;

    return !side->plain && ioctl(side->watch.fd, SIOCATMARK, &at_mark) == 0 && at_mark;
}

/* As pass_on. */
static bool read_once(struct connection *connection, int from, enum progress *progress)
{
    if (is_at_mark(&connection->side[from]))
        return copy_urgent(connection, from, progress);
    return connection->flow[from].splicing ? splice_once(connection, from, progress)
                                           : copy_once(connection, from, progress);
}

/* Moves what can be moved now. `pass_end`: whether an end that is read is passed on. */
static enum progress run_flow(struct connection *connection, int from, bool pass_end)
{
    struct flow *flow = &connection->flow[from];
    struct side *side = &connection->side[from], *to = &connection->side[!from];
    enum progress progress = PROGRESS_BLOCKED;

    if (to->finished)
        return PROGRESS_DONE;
    if ((flow->chunk || (flow->pipe && flow->pipe->held)) && !to->writable)
        return PROGRESS_BLOCKED;
    if (flow->chunk && !flush_chunk(connection, from, &progress))
        return progress;
    if (flow->pipe && !flush_pipe(connection, from, &progress))
        return progress;
    for (int i = 0; side->readable && !side->ended; i++) {
        if (i == RELAY_BATCH)
            return PROGRESS_BATCH;
        if (connection->accelerated && accelerate_waits(connection, !from))
            return PROGRESS_BLOCKED;
        if (!read_once(connection, from, &progress))
            break;
    }
    /* Not the chunk: what was copied after the last splice may wait in one. */
    if (flow->pipe && flow->pipe->held == 0)
        release_pipe(connection->worker, flow);
    if (progress == PROGRESS_FAILED || progress == PROGRESS_LOST)
        return progress;
    if (!side->ended || flow->chunk || flow->pipe || !pass_end)
        return progress;
    if (shutdown(to->watch.fd, SHUT_WR) < 0)
        return side_failed(connection, !from, errno);
    to->finished = true;
    return PROGRESS_DONE;
}

/* ---- both directions ---- */

/* A side was reset. What it sent before the reset is still to be delivered as far as the other one
 * takes it at once; then the other one is reset too, without an end before: that would look as if
 * everything had arrived. */
static void fail(struct connection *connection)
{
    enum dp_end end = connection->end;
    int error = connection->error;
    int failed = end == DP_END_DOWNSTREAM_RESET ? DOWNSTREAM : UPSTREAM;

    connection->side[failed].readable = true;
    while (run_flow(connection, failed, false) == PROGRESS_BATCH)
        ;
    connection_close(connection, end, error);
}

static void run(struct connection *connection)
{
    enum progress progress[2];

    for (int from = DOWNSTREAM; from <= UPSTREAM; from++) {
        progress[from] = run_flow(connection, from, true);
        if (progress[from] == PROGRESS_FAILED) {
            fail(connection);
            return;
        }
        if (progress[from] == PROGRESS_LOST) {
            connection_close(connection, DP_END_NO_RESOURCES, ENOMEM);
            return;
        }
    }
    if (progress[DOWNSTREAM] == PROGRESS_DONE && progress[UPSTREAM] == PROGRESS_DONE) {
        connection_close(connection, DP_END_EOF, 0);
        return;
    }
    if (progress[DOWNSTREAM] == PROGRESS_BATCH || progress[UPSTREAM] == PROGRESS_BATCH)
        task_schedule(&connection->worker->loop.tasks, &connection->task);
    if (connection->accelerable)
        accelerate_if_it_pays(connection);
}

void relay_note_events(struct connection *connection, int index, uint32_t events)
{
    struct side *side = &connection->side[index];

    if (events & (EPOLLIN | EPOLLPRI | EPOLLHUP | EPOLLRDHUP))
        side->readable = true;
    if (events & EPOLLRDHUP)
        side->hung_up = true;
    if (events & EPOLLPRI)
        side->urgent = true;
    /* What was read in this turn may be what the event was about. */
    side->plain = (events & (EPOLLIN | EPOLLPRI)) == EPOLLIN &&
                  side->read_ns != connection->worker->loop.now_ns;
}

static void side_ready(struct connection *connection, int index, uint32_t events)
{
    struct side *side = &connection->side[index];
    int error = 0;
    socklen_t length = sizeof error;

    relay_note_events(connection, index, events);
    if (events & EPOLLOUT && !side->writable) {
        side->writable = true;
        if (connection->accelerated)
            accelerate_writable(connection, index);
    }
    if (events & EPOLLERR) {
        /* Also where backpressure keeps us from reading this side: a reset does not wait. */
        if (getsockopt(side->watch.fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0)
            error = errno;
        side_failed(connection, index, error ? error : ECONNRESET);
        fail(connection);
        return;
    }
    run(connection);
}

static void downstream_ready(struct watch *watch, uint32_t events)
{
    side_ready(OWNER(watch, struct connection, side[DOWNSTREAM].watch), DOWNSTREAM, events);
}

static void upstream_ready(struct watch *watch, uint32_t events)
{
    side_ready(OWNER(watch, struct connection, side[UPSTREAM].watch), UPSTREAM, events);
}

static void go_on(struct task *task)
{
    run(OWNER(task, struct connection, task));
}

void relay_start(struct connection *connection)
{
    struct worker *worker = connection->worker;
    uint32_t idle_ms = atomic_load_explicit(&worker->dp->idle_ms, memory_order_relaxed);

    connection->last_active_ms = worker->loop.now_ms;
    connection->task.run = go_on;
    connection->side[DOWNSTREAM].watch.ready = downstream_ready;
    connection->side[UPSTREAM].watch.ready = upstream_ready;
    loop_set_timer(&worker->loop, &connection->timer, idle_ms, relay_expired);
    connection->accelerable = accelerate_tries(connection);
    connection_enter(connection, PHASE_RELAYING);
    run(connection);
}

void relay_expired(struct timer *timer)
{
    struct connection *connection = OWNER(timer, struct connection, timer);
    struct worker *worker = connection->worker;
    uint32_t idle_ms = atomic_load_explicit(&worker->dp->idle_ms, memory_order_relaxed);
    uint64_t next = UINT64_MAX, idle_deadline;

    if (connection->accelerated)
        next = accelerate_tick(connection);
    idle_deadline = connection->last_active_ms + idle_ms;
    if (idle_deadline <= worker->loop.now_ms)
        connection_close(connection, DP_END_IDLE_TIMEOUT, 0);
    else
        loop_set_timer(&worker->loop, timer,
                       (next < idle_deadline ? next : idle_deadline) - worker->loop.now_ms,
                       relay_expired);
}

void relay_release(struct connection *connection)
{
    for (int from = DOWNSTREAM; from <= UPSTREAM; from++) {
        release_chunk(connection->worker, &connection->flow[from]);
        release_pipe(connection->worker, &connection->flow[from]);
    }
}
