#include "l7/wire.h"

#include <errno.h>
#include <sys/socket.h>

#include "base/owner.h"
#include "l7/streams.h"
#include "net/pipe.h"
#include "net/socket.h"

enum {
    READ_BATCH = 16,            /* reads before others get their turn */
    BEHIND_BYTES = 64 * 1024,   /* may wait to be sent before nothing more is read */
    COPIED_BYTES = 8 * 1024,    /* of a body that are sent with what else the turn brings */
    SPLICED_BYTES = 256 * 1024, /* left of a body, for which a pipe is worth it */
};

static struct blocks *blocks_of(const struct wire *wire)
{
    return &wire->worker->streams->blocks;
}

static void schedule(struct wire *wire)
{
    if (!wire->closed)
        task_schedule(&wire->worker->loop.tasks, &wire->run);
}

/* ---- sending ---- */

void wire_fail(struct wire *wire, int error)
{
    wire->error = error == EPIPE ? ECONNRESET : error;
    wire->channel->readable = true; /* see may_fail */
    buffer_release(blocks_of(wire), &wire->out);
    schedule(wire);
}

/* How many of the bytes were sent. */
static size_t write_now(struct wire *wire, const void *data, size_t size)
{
    struct channel *channel = wire->channel;
    ssize_t sent;

    do
        sent = channel->transport->write(channel, data, size, 0);
    while (sent < 0 && errno == EINTR);
    if (sent < 0 && errno != EAGAIN) {
        wire_fail(wire, errno);
        return size;
    }
    if (sent < (ssize_t)size)
        channel->writable = false;
    if (sent <= 0)
        return 0;
    wire->written += (size_t)sent;
    wire->last_active_ms = wire->worker->loop.now_ms;
    return (size_t)sent;
}

/* Sends what waits, as far as it can be. */
static void flush(struct wire *wire)
{
    uint32_t held;

    if (wire->ops->fill && !wire->error)
        wire->ops->fill(wire);
    held = buffer_held(&wire->out);
    if (held == 0 || !wire->channel->writable || wire->error)
        return;
    held = (uint32_t)write_now(wire, wire->out.data + wire->out.start, held);
    if (!wire->error)
        buffer_drop(blocks_of(wire), &wire->out, held);
}

void wire_flush(struct wire *wire)
{
    flush(wire);
}

void wire_wants_to_write(struct wire *wire)
{
    schedule(wire);
}

uint8_t *wire_room(struct wire *wire, size_t size)
{
    return buffer_room(blocks_of(wire), &wire->out, size);
}

void wire_wrote(struct wire *wire, size_t size)
{
    wire->out.end += (uint32_t)size;
    if (wire->error || buffer_held(&wire->out) == 0) /* what holds nothing has no memory */
        buffer_release(blocks_of(wire), &wire->out);
    else
        schedule(wire);
}

static bool add(struct wire *wire, const void *data, size_t size)
{
    if (size == 0 || wire->error)
        return true;
    if (!buffer_add(blocks_of(wire), &wire->out, data, size))
        return false;
    schedule(wire);
    return true;
}

bool wire_send_body(struct wire *wire, const void *data, size_t size)
{
    uint8_t around[DATA_ROOM];
    size_t sent = 0;

    if (wire->encoder.no_body || size == 0)
        return true;
    if (!add(wire, around, wire->codec->before_data(&wire->encoder, size, around)))
        return false;
    if (size > COPIED_BYTES) {
        flush(wire);
        if (buffer_held(&wire->out) == 0 && wire->channel->writable && !wire->error)
            sent = write_now(wire, data, size);
    }
    return add(wire, (const uint8_t *)data + sent, size - sent) &&
           add(wire, around, wire->codec->after_data(&wire->encoder, around));
}

bool wire_is_behind(const struct wire *wire)
{
    return buffer_held(&wire->out) > BEHIND_BYTES;
}

/* ---- reading ---- */

/* Tells the owner what is in the input, as far as it wants to know. Returns how much of it is done
 * with. */
static size_t decode(struct wire *wire, const uint8_t *data, size_t size)
{
    struct message message = {0};
    size_t used = 0;

    if (wire->ops->take)
        return wire->paused || wire->broken ? 0 : wire->ops->take(wire, data, size);
    while (!wire->closed && !wire->paused && !wire->broken && !wire->spliced_to) {
        size_t consumed = 0;
        enum codec_event event =
            wire->codec->decode(&wire->decoder, data + used, size - used, &consumed, &message);

        used += consumed;
        if (event == CODEC_MORE) {
            wire->wanted = message.wanted > UINT32_MAX ? UINT32_MAX : (uint32_t)message.wanted;
            break;
        }
        wire->broken = event == CODEC_ERROR;
        if (event == CODEC_HEAD)
            message.frame = (struct text){(const char *)data + used - consumed, (uint32_t)consumed};
        wire->ops->decoded(wire, event, &message, consumed);
    }
    return used;
}

static void decode_held(struct wire *wire)
{
    const uint8_t *data = wire->in.data ? wire->in.data + wire->in.start : wire->worker->scratch;
    size_t used = decode(wire, data, buffer_held(&wire->in));

    if (!wire->closed)
        buffer_drop(blocks_of(wire), &wire->in, used);
}

/* Whether reading may go on. */
static bool after_read(struct wire *wire, ssize_t count, size_t wanted)
{
    struct channel *channel = wire->channel;

    if (count == 0) {
        channel->ended = true;
        return false;
    }
    if (count < 0 && errno == EINTR)
        return true;
    if (count < 0 && errno != EAGAIN) {
        wire->ops->failed(wire, errno);
        return false;
    }
    /* As l4/flow.c: epoll does not announce an end again that is there already. */
    if (count < 0 || ((size_t)count < wanted && !channel->hung_up && !channel->urgent &&
                      !channel->transport->short_reads))
        channel->readable = false;
    if (count < 0)
        channel->urgent = false;
    return count > 0;
}

static void note_read(struct wire *wire, size_t count)
{
    wire->read += count;
    wire->last_active_ms = wire->worker->loop.now_ms;
}

/* Behind what is held already. Memory grows by what has come, not by what was announced. */
static bool read_behind(struct wire *wire)
{
    uint32_t held = buffer_held(&wire->in);
    size_t size = held > BLOCK_BYTES / 2 ? held : BLOCK_BYTES - held;
    size_t missing = wire->wanted > held ? wire->wanted - held : size;
    uint8_t *to;
    ssize_t count;

    if (held > BLOCK_BYTES && size > missing)
        size = missing;
    to = buffer_room(blocks_of(wire), &wire->in, size);
    if (!to) {
        wire->ops->failed(wire, ENOMEM);
        return false;
    }
    count = channel_read(wire->channel, to, size);
    if (count > 0) {
        wire->in.end += (uint32_t)count;
        note_read(wire, (size_t)count);
        if (buffer_held(&wire->in) >= wire->wanted)
            decode_held(wire);
    }
    return !wire->closed && after_read(wire, count, size);
}

static bool read_fresh(struct wire *wire)
{
    uint8_t *scratch = wire->worker->scratch;
    ssize_t count = channel_read(wire->channel, scratch, SCRATCH_SIZE);
    bool more;
    size_t used;

    more = after_read(wire, count, SCRATCH_SIZE);
    if (count <= 0)
        return more;
    note_read(wire, (size_t)count);
    used = decode(wire, scratch, (size_t)count);
    if (wire->closed)
        return false;
    if (used < (size_t)count && !wire->broken &&
        !buffer_add(blocks_of(wire), &wire->in, scratch + used, (size_t)count - used)) {
        wire->ops->failed(wire, ENOMEM);
        return false;
    }
    return more;
}

/* ---- splicing ---- */

void wire_splice_to(struct wire *wire, struct wire *to)
{
    if (wire->decoder.plain && wire->decoder.left >= SPLICED_BYTES && !to->encoder.chunked &&
        !to->encoder.no_body && wire->channel->transport->to_pipe &&
        to->channel->transport->from_pipe)
        wire->spliced_to = to;
}

void wire_stop_splicing(struct wire *wire)
{
    if (wire->pipe)
        pipe_give_back(wire->worker, wire->pipe);
    wire->pipe = NULL;
    wire->spliced_to = NULL;
}

/* Sends what the pipe holds. False: not all of it. */
static bool empty_pipe(struct wire *wire)
{
    struct wire *to = wire->spliced_to;

    while (wire->pipe->held > 0) {
        ssize_t sent =
            to->channel->transport->from_pipe(to->channel, wire->pipe->read_end, wire->pipe->held);

        if (sent < 0 && errno != EAGAIN && errno != EINTR) {
            wire_fail(to, errno);
            return false;
        }
        if (sent <= 0) {
            to->channel->writable = false;
            return false;
        }
        wire->pipe->held -= (size_t)sent;
        to->written += (size_t)sent;
        to->last_active_ms = wire->last_active_ms = wire->worker->loop.now_ms;
        counter_add(&wire->worker->counters.bytes_spliced, sent);
    }
    return true;
}

/* As read_fresh. */
static bool splice_on(struct wire *wire)
{
    struct decoder *decoder = &wire->decoder;
    struct wire *to = wire->spliced_to;
    ssize_t count;

    if (buffer_held(&to->out) > 0 || to->error)
        return false;
    if (!wire->pipe)
        wire->pipe = pipe_acquire(wire->worker);
    if (!wire->pipe || (wire->pipe->held == 0 && decoder->left == 0)) {
        wire_stop_splicing(wire);
        decode_held(wire);
        return !wire->closed;
    }
    if (wire->pipe->held > 0)
        return empty_pipe(wire);
    count = channel_to_pipe(wire->channel, wire->pipe->write_end,
                            decoder->left < PIPE_SIZE ? decoder->left : PIPE_SIZE);
    if (count == 0) { /* the end, or an urgent byte: recv() can tell */
        wire_stop_splicing(wire);
        return true;
    }
    if (count < 0)
        return after_read(wire, count, 0);
    note_read(wire, (size_t)count);
    wire->pipe->held = (size_t)count;
    if (decoder->left != UINT64_MAX)
        decoder->left -= (uint64_t)count;
    wire->ops->spliced(wire, (size_t)count);
    return empty_pipe(wire);
}

/* ---- its turn ---- */

/* The peer has ended: what is under way ends, or is cut off. */
static void tell_end(struct wire *wire)
{
    struct message message = {0};
    enum codec_event event;

    if (wire->told_end || wire->paused || wire->spliced_to)
        return;
    wire->told_end = true;
    if (!wire->broken) {
        event = buffer_held(&wire->in) > 0 ? CODEC_ERROR
                                           : wire->codec->finish(&wire->decoder, &message);
        if (event == CODEC_ERROR && !message.problem)
            message.problem = "cut off";
        wire->broken = event == CODEC_ERROR;
        if (event != CODEC_MORE)
            wire->ops->decoded(wire, event, &message, 0);
    }
    if (!wire->closed)
        wire->ops->ended(wire);
}

static bool read_on(struct wire *wire)
{
    if (wire->spliced_to && buffer_held(&wire->in) == 0)
        return splice_on(wire);
    if (wire->paused || wire->broken)
        return false;
    return buffer_held(&wire->in) > 0 ? read_behind(wire) : read_fresh(wire);
}

static void read_all(struct wire *wire)
{
    struct channel *channel = wire->channel;

    for (int i = 0; !wire->closed; i++) {
        bool has_pipe = wire->pipe && wire->pipe->held > 0;

        if (!has_pipe && (!channel->readable || channel->ended) &&
            !(wire->spliced_to && wire->decoder.left == 0))
            break;
        if (i == READ_BATCH) {
            schedule(wire);
            return;
        }
        if (!read_on(wire))
            break;
    }
    if (!wire->closed && channel->ended)
        tell_end(wire);
}

/* Nothing can be written any more. An upstream may have answered all the same, before it closed
 * the connection: that is read first. */
static bool may_fail(const struct wire *wire)
{
    const struct channel *channel = wire->channel;

    return !wire->decoder.response || wire->broken || channel->ended ||
           (!channel->readable && !wire->paused && !wire->spliced_to);
}

static void run(struct wire *wire)
{
    if (wire->running || wire->closed)
        return;
    wire->running = true;
    flush(wire);
    if (!wire->error || wire->decoder.response) {
        if (buffer_held(&wire->in) > 0 || wire->decoder.state)
            decode_held(wire);
        if (!wire->closed)
            read_all(wire);
    }
    if (!wire->closed && wire->error) {
        if (may_fail(wire))
            wire->ops->failed(wire, wire->error);
    } else if (!wire->closed && wire->channel->writable) {
        wire->ops->sent(wire);
    }
    wire->running = false;
}

static void run_task(struct task *task)
{
    run(OWNER(task, struct wire, run));
}

/* Whether reading would not tell of a reset for long. A client's does not wait; but what an
 * upstream sent before is read first. */
static bool is_deaf(const struct wire *wire)
{
    return wire->broken || wire->channel->ended ||
           (!wire->decoder.response && (wire->paused || wire->spliced_to));
}

void wire_changed(struct wire *wire, uint32_t events)
{
    int error;

    if (wire->closed)
        return;
    if (events & EPOLLERR && is_deaf(wire)) {
        error = socket_take_error(wire->channel->watch.fd);
        wire->ops->failed(wire, error ? error : ECONNRESET);
        return;
    }
    run(wire);
}

void wire_pause(struct wire *wire)
{
    wire->paused = true;
}

bool wire_is_held_back(const struct wire *wire)
{
    return wire->paused || (wire->pipe && wire->pipe->held > 0);
}

void wire_resume(struct wire *wire)
{
    wire->paused = false;
    if (wire->spliced_to || buffer_held(&wire->in) > 0 || wire->channel->readable ||
        wire->decoder.state || (wire->channel->ended && !wire->told_end))
        schedule(wire);
}

void wire_writable(struct wire *wire)
{
    wire->channel->writable = true;
    schedule(wire);
}

/* ---- life ---- */

void wire_open(struct wire *wire, struct worker *worker, struct channel *channel,
               const struct codec *codec, const struct wire_ops *ops)
{
    *wire = (struct wire){
        .worker = worker,
        .channel = channel,
        .codec = codec,
        .ops = ops,
        .decoder.limits = worker->streams->limits,
        .run.run = run_task,
        .last_active_ms = worker->loop.now_ms,
    };
}

void wire_close(struct wire *wire)
{
    if (wire->closed || !wire->worker)
        return;
    wire->closed = true;
    task_cancel(&wire->worker->loop.tasks, &wire->run);
    wire_stop_splicing(wire);
    buffer_release(blocks_of(wire), &wire->in);
    buffer_release(blocks_of(wire), &wire->out);
}
