#include "l4/flow.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "l4/tunnel.h"
#include "net/pipe.h"

enum {
    RELAY_BATCH = 16,          /* reads of one flow before others get their turn */
    FULL_READS_TO_SPLICE = 4,  /* consecutive reads that filled the scratch memory */
    SMALL_SPLICES_TO_COPY = 8, /* consecutive splices below SMALL_SPLICE */
    SMALL_SPLICE = 16 * 1024,
};

struct chunk {
    uint32_t start, end;
    int flags; /* of send(): MSG_OOB, or 0 */
    uint8_t data[];
};

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

void flow_count(struct tunnel *tunnel, int from, size_t bytes)
{
    struct worker *worker = tunnel_worker(tunnel);

    if (trace_is_on(&worker->trace) && counter_read(&tunnel->session->bytes[from]) == 0)
        trace_write(&worker->trace, tunnel->session->id, TRACE_first_bytes, (uint64_t)from, bytes);
    counter_add(&tunnel->session->bytes[from], (int64_t)bytes);
    counter_add(&worker->counters.bytes[from], (int64_t)bytes);
    tunnel->last_active_ms = worker->loop.now_ms;
}

static void passed_on(struct tunnel *tunnel, int from, size_t bytes)
{
    flow_count(tunnel, from, bytes);
    if (tunnel->ops && tunnel->ops->forwarded)
        tunnel->ops->forwarded(tunnel, from, bytes);
}

enum progress flow_side_failed(struct tunnel *tunnel, int side, int error)
{
    struct session *session = tunnel->session;

    trace(session->worker, session->id, reset, side, error);
    session->end = side == DOWNSTREAM ? DP_END_DOWNSTREAM_RESET : DP_END_UPSTREAM_RESET;
    session->error = error == EPIPE ? ECONNRESET : error;
    return PROGRESS_FAILED;
}

/* Notes that the receiver takes no more, while `held` bytes wait for it. */
static void hold_back(struct tunnel *tunnel, int from, size_t held)
{
    struct flow *flow = &tunnel->flow[from];

    tunnel_side(tunnel, !from)->writable = false;
    if (!flow->held_back)
        trace(tunnel_worker(tunnel), tunnel->session->id, held_back, !from, held);
    flow->held_back = true;
}

static void go_on(struct tunnel *tunnel, int from)
{
    struct flow *flow = &tunnel->flow[from];

    if (flow->held_back)
        trace(tunnel_worker(tunnel), tunnel->session->id, goes_on, !from, 0);
    flow->held_back = false;
}

/* Sends the flow's chunk. True when it is gone; else `*progress` says why not. */
static bool flush_chunk(struct tunnel *tunnel, int from, enum progress *progress)
{
    struct flow *flow = &tunnel->flow[from];
    struct channel *to = tunnel_side(tunnel, !from);
    struct chunk *chunk = flow->chunk;
    ssize_t sent = to->transport->write(to, chunk->data + chunk->start, chunk->end - chunk->start,
                                        chunk->flags);

    if (sent < 0 && errno != EAGAIN && errno != EINTR) {
        *progress = flow_side_failed(tunnel, !from, errno);
        return false;
    }
    if (sent > 0) {
        passed_on(tunnel, from, (size_t)sent);
        chunk->start += (uint32_t)sent;
    }
    if (chunk->start < chunk->end) {
        hold_back(tunnel, from, chunk->end - chunk->start);
        *progress = PROGRESS_BLOCKED;
        return false;
    }
    release_chunk(tunnel_worker(tunnel), flow);
    go_on(tunnel, from);
    return true;
}

/* Sends what the flow's pipe holds. Returns as flush_chunk does. */
static bool flush_pipe(struct tunnel *tunnel, int from, enum progress *progress)
{
    struct flow *flow = &tunnel->flow[from];
    struct channel *to = tunnel_side(tunnel, !from);

    while (flow->pipe->held > 0) {
        ssize_t sent = to->transport->from_pipe(to, flow->pipe->read_end, flow->pipe->held);

        if (sent < 0 && errno != EAGAIN && errno != EINTR) {
            *progress = flow_side_failed(tunnel, !from, errno);
            return false;
        }
        if (sent <= 0) {
            hold_back(tunnel, from, flow->pipe->held);
            *progress = PROGRESS_BLOCKED;
            return false;
        }
        flow->pipe->held -= (size_t)sent;
        passed_on(tunnel, from, (size_t)sent);
        counter_add(&tunnel_worker(tunnel)->counters.bytes_spliced, sent);
    }
    go_on(tunnel, from);
    return true;
}

/* Notes what a read of `count` bytes says of the side, where `wanted` were asked for. False when
 * there is nothing more to read for now. A short read means that the socket is empty. But epoll
 * would not announce an end or an urgent byte again that is there already: then reading goes on up
 * to it. */
static bool after_read(struct tunnel *tunnel, int from, ssize_t count, size_t wanted,
                       enum progress *progress)
{
    struct channel *side = tunnel_side(tunnel, from);

    if (count == 0) {
        side->ended = true;
        return true;
    }
    if (count < 0 && errno == EINTR)
        return true;
    if (count < 0 && errno != EAGAIN) {
        *progress = flow_side_failed(tunnel, from, errno);
        return false;
    }
    if (count < 0 || ((size_t)count < wanted && !side->hung_up && !side->urgent))
        side->readable = false;
    if (count < 0)
        side->urgent = false; /* epoll announces it again when what comes before it arrives */
    *progress = PROGRESS_BLOCKED;
    return count > 0;
}

static void set_splicing(struct tunnel *tunnel, int from, bool on)
{
    struct flow *flow = &tunnel->flow[from];
    const struct flow_ops *ops = tunnel->ops;

    if (on && ops && ops->splice)
        on = ops->splice(tunnel, from);
    else if (!on && ops && ops->copy)
        ops->copy(tunnel, from);
    if (on && (!tunnel_side(tunnel, from)->transport->to_pipe ||
               !tunnel_side(tunnel, !from)->transport->from_pipe))
        on = false;
    if (on)
        trace(tunnel_worker(tunnel), tunnel->session->id, splicing, from, 0);
    else if (flow->splicing)
        trace(tunnel_worker(tunnel), tunnel->session->id, copying, from, 0);
    flow->splicing = on;
    flow->streak = 0;
}

uint8_t *flow_hold(struct tunnel *tunnel, int from, size_t size)
{
    struct chunk *chunk = malloc(sizeof *chunk + size);

    if (!chunk)
        return NULL;
    counter_add(&tunnel_worker(tunnel)->counters.buffers, 1);
    *chunk = (struct chunk){.end = (uint32_t)size};
    tunnel->flow[from].chunk = chunk;
    return chunk->data;
}

/* Sends what was read to the scratch memory, and keeps the rest. False when the flow cannot go on.
 */
static bool pass_on(struct tunnel *tunnel, int from, size_t count, int flags,
                    enum progress *progress)
{
    struct worker *worker = tunnel_worker(tunnel);
    struct channel *to = tunnel_side(tunnel, !from);
    ssize_t sent = to->transport->write(to, worker->scratch, count, flags);
    uint8_t *kept;
    size_t left;

    if (sent < 0 && errno != EAGAIN && errno != EINTR) {
        *progress = flow_side_failed(tunnel, !from, errno);
        return false;
    }
    if (sent > 0)
        passed_on(tunnel, from, (size_t)sent);
    else
        sent = 0;
    left = count - (size_t)sent;
    if (left == 0)
        return true;
    kept = flow_hold(tunnel, from, left);
    if (!kept) {
        *progress = PROGRESS_LOST;
        return false;
    }
    tunnel->flow[from].chunk->flags = flags;
    memcpy(kept, worker->scratch + sent, left);
    hold_back(tunnel, from, left);
    *progress = PROGRESS_BLOCKED;
    return false;
}

/* Whether a short read means that there is nothing more. */
static bool short_read_tells(struct tunnel *tunnel, int from)
{
    const struct flow_ops *ops = tunnel->ops;

    return !tunnel_side(tunnel, from)->transport->short_reads &&
           !(ops && ops->reads_both && ops->reads_both(tunnel, from));
}

/* Reads once and passes on what can be passed on. Returns as pass_on does. */
static bool copy_once(struct tunnel *tunnel, int from, enum progress *progress)
{
    struct flow *flow = &tunnel->flow[from];
    const struct flow_ops *ops = tunnel->ops;
    ssize_t count;
    bool going_on;

    if (ops && ops->copying)
        ops->copying(tunnel, from);
    count = channel_read(tunnel_side(tunnel, from), tunnel_worker(tunnel)->scratch, SCRATCH_SIZE);
    if (!after_read(tunnel, from, count, short_read_tells(tunnel, from) ? SCRATCH_SIZE : 0,
                    progress))
        return false;
    if (count <= 0)
        return true;
    tunnel->round_trips += from == DOWNSTREAM && tunnel->last_read == UPSTREAM;
    tunnel->last_read = (uint8_t)from;
    flow->streak = count == SCRATCH_SIZE ? flow->streak + 1 : 0;
    if (flow->streak >= FULL_READS_TO_SPLICE)
        set_splicing(tunnel, from, true);
    going_on = pass_on(tunnel, from, (size_t)count, 0, progress);
    if (ops && ops->copied)
        ops->copied(tunnel, from, count == SCRATCH_SIZE);
    return going_on;
}

/* The next byte is urgent: reads and passes on that one. Returns as pass_on does. */
static bool copy_urgent(struct tunnel *tunnel, int from, enum progress *progress)
{
    struct channel *side = tunnel_side(tunnel, from);
    ssize_t count = channel_read(side, tunnel_worker(tunnel)->scratch, 1);

    if (!after_read(tunnel, from, count, 0, progress))
        return false;
    if (count <= 0)
        return true;
    side->urgent = false;
    if (tunnel->ops && tunnel->ops->urgent)
        tunnel->ops->urgent(tunnel, from);
    return pass_on(tunnel, from, 1, MSG_OOB, progress);
}

/* As copy_once, by splice. */
static bool splice_once(struct tunnel *tunnel, int from, enum progress *progress)
{
    struct flow *flow = &tunnel->flow[from];
    ssize_t count;

    if (!flow->pipe) {
        flow->pipe = pipe_acquire(tunnel_worker(tunnel));
        if (!flow->pipe) {
            set_splicing(tunnel, from, false);
            return true;
        }
    }
    count = channel_to_pipe(tunnel_side(tunnel, from), flow->pipe->write_end, PIPE_SIZE);
    /* With the end in the queue, splice returns 0 already before an urgent byte. recv() can tell.
     */
    if (count == 0) {
        set_splicing(tunnel, from, false);
        return true;
    }
    /* EAGAIN means an empty socket, as the pipe is empty here. A short splice means nothing: the
     * pipe may have run out of slots. */
    if (!after_read(tunnel, from, count, 0, progress))
        return false;
    if (count <= 0)
        return true;
    flow->pipe->held += (size_t)count;
    flow->streak = count < SMALL_SPLICE ? flow->streak + 1 : 0;
    if (flow->streak >= SMALL_SPLICES_TO_COPY)
        set_splicing(tunnel, from, false);
    return flush_pipe(tunnel, from, progress);
}

/* Returns as pass_on does. */
static bool read_once(struct tunnel *tunnel, int from, enum progress *progress)
{
    if (channel_is_at_mark(tunnel_side(tunnel, from)))
        return copy_urgent(tunnel, from, progress);
    return tunnel->flow[from].splicing ? splice_once(tunnel, from, progress)
                                       : copy_once(tunnel, from, progress);
}

static bool has_to_wait(struct tunnel *tunnel, int to)
{
    const struct flow_ops *ops = tunnel->ops;

    return ops && ops->waits && ops->waits(tunnel, to);
}

enum progress flow_run(struct tunnel *tunnel, int from, bool pass_end)
{
    struct flow *flow = &tunnel->flow[from];
    struct channel *side = tunnel_side(tunnel, from), *to = tunnel_side(tunnel, !from);
    enum progress progress = PROGRESS_BLOCKED;

    if (to->finished)
        return PROGRESS_DONE;
    if ((flow->chunk || (flow->pipe && flow->pipe->held)) && !to->writable)
        return PROGRESS_BLOCKED;
    if (flow->chunk && !flush_chunk(tunnel, from, &progress))
        return progress;
    if (flow->pipe && !flush_pipe(tunnel, from, &progress))
        return progress;
    for (int i = 0; side->readable && !side->ended; i++) {
        if (i == RELAY_BATCH)
            return PROGRESS_BATCH;
        if (has_to_wait(tunnel, !from))
            return PROGRESS_BLOCKED;
        if (!read_once(tunnel, from, &progress))
            break;
    }
    /* Not if there is a chunk only: what was copied after the last splice may wait in it. */
    if (flow->pipe && flow->pipe->held == 0)
        release_pipe(tunnel_worker(tunnel), flow);
    if (progress == PROGRESS_FAILED || progress == PROGRESS_LOST)
        return progress;
    if (!side->ended || flow->chunk || flow->pipe || !pass_end)
        return progress;
    if (to->transport->shut(to) < 0)
        return flow_side_failed(tunnel, !from, errno);
    to->finished = true;
    trace(tunnel_worker(tunnel), tunnel->session->id, ended, from,
          counter_read(&tunnel->session->bytes[from]));
    return PROGRESS_DONE;
}

void flow_release(struct tunnel *tunnel, int from)
{
    release_chunk(tunnel_worker(tunnel), &tunnel->flow[from]);
    release_pipe(tunnel_worker(tunnel), &tunnel->flow[from]);
}
