#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "internal.h"

struct connection *connection_open(struct worker *worker, const struct listener *listener,
                                   enum phase phase, uint8_t fds)
{
    struct connection *connection = calloc(1, sizeof *connection), *was;
    struct dp *dp = worker->dp;

    if (!connection || !timers_reserve(&worker->loop.timers, 1)) {
        fds_release(dp, fds);
        free(connection);
        return NULL;
    }
    connection->worker = worker;
    connection->listener = listener;
    connection->id = atomic_fetch_add_explicit(&dp->next_id, 1, memory_order_relaxed) + 1;
    connection->opened_real_ns = clock_ns(CLOCK_REALTIME);
    connection->opened_ns = clock_ns(CLOCK_MONOTONIC);
    connection->last_active_ms = worker->loop.now_ms;
    connection->timer.index = TIMER_OFF;
    connection->side[DOWNSTREAM].watch.fd = -1;
    connection->side[UPSTREAM].watch.fd = -1;
    connection->request.fd = -1;
    connection->application = -1;
    connection->uid = UINT32_MAX;
    connection->route = UINT32_MAX;
    connection->fds_reserved = fds;
    atomic_init(&connection->phase, phase);
    counter_add(&worker->counters.accepted, 1);
    STACK_PUSH_CHAIN(&dp->opened, connection, connection, next_opened, &was);
    return connection;
}

/* Which phases may follow, as bits. */
static const uint16_t following[] = {
    [PHASE_REQUEST] =
        1 << PHASE_EXPECTED | 1 << PHASE_CONNECTING | 1 << PHASE_DIRECT | 1 << PHASE_CLOSED,
    [PHASE_HEADER] = 1 << PHASE_CONNECTING | 1 << PHASE_CLOSED,
    [PHASE_EXPECTED] = 1 << PHASE_CONNECTING | 1 << PHASE_CLOSED,
    [PHASE_CONNECTING] =
        1 << PHASE_COMPLETING | 1 << PHASE_FAILING | 1 << PHASE_RELAYING | 1 << PHASE_CLOSED,
    [PHASE_COMPLETING] = 1 << PHASE_FAILING | 1 << PHASE_RELAYING | 1 << PHASE_CLOSED,
    [PHASE_FAILING] = 1 << PHASE_CLOSED,
    [PHASE_RELAYING] = 1 << PHASE_CLOSED,
    [PHASE_DIRECT] = 1 << PHASE_CLOSED,
    [PHASE_CLOSED] = 0,
};

void connection_enter(struct connection *connection, enum phase phase)
{
    assert(following[atomic_load_explicit(&connection->phase, memory_order_relaxed)] & 1 << phase);
    (void)following; /* without assertions */
    if (phase != PHASE_EXPECTED)
        clients_waited(connection);
    atomic_store_explicit(&connection->phase, phase, memory_order_release);
}

void connection_release_fds(struct connection *connection, uint8_t keep)
{
    if (connection->fds_reserved <= keep)
        return;
    fds_release(connection->worker->dp, connection->fds_reserved - keep);
    connection->fds_reserved = keep;
}

/* A close of a socket that has not ended in order must not look like an ordinary end to the other
 * side, and is a reset (see tune_socket), unless that is taken back. */
static void close_side(struct worker *worker, struct side *side, bool reset)
{
    static const struct linger in_order = {.l_onoff = 0};

    if (side->watch.fd >= 0 && !reset)
        setsockopt(side->watch.fd, SOL_SOCKET, SO_LINGER, &in_order, sizeof in_order);
    loop_close_watch(&worker->loop, &side->watch);
}

void connection_close(struct connection *connection, enum dp_end end, int error)
{
    struct worker *worker = connection->worker;
    bool reset = end != DP_END_EOF;

    if (atomic_load_explicit(&connection->phase, memory_order_relaxed) == PHASE_CLOSED)
        return;
    connection->end = (uint8_t)end;
    connection->error = error;
    connection->closed_ns = clock_ns(CLOCK_MONOTONIC);
    timer_cancel(&worker->loop.timers, &connection->timer);
    timers_release(&worker->loop.timers, 1);
    /* Whyever it is closed: an application whose socket is still parked would wait for ever. */
    if (atomic_load_explicit(&connection->phase, memory_order_relaxed) == PHASE_REQUEST)
        control_take_unread(connection);
    if (connection->application >= 0)
        park_abandon(connection, error ? error : ECONNREFUSED);
    task_cancel(&worker->loop.tasks, &connection->task);
    if (connection->accelerated)
        accelerate_stop(connection);
    relay_release(connection);
    direct_release(connection);
    close_side(worker, &connection->side[DOWNSTREAM], reset);
    close_side(worker, &connection->side[UPSTREAM], reset);
    if (connection->accelerated)
        accelerate_release(connection);
    foreign_close_request(connection);
    foreign_close(connection, &connection->application);
    upstream_release(connection);
    connection_release_fds(connection, 0);
    connection_enter(connection, PHASE_CLOSED);
    counter_add(&worker->counters.closed, 1);
    connection->next_closed = worker->closed;
    worker->closed = connection;
}

void downstream_refuse(struct worker *worker, const struct listener *listener, int fd)
{
    struct connection *connection = connection_open(worker, listener, PHASE_HEADER, 0);

    if (!connection) {
        close(fd);
        return;
    }
    connection->side[DOWNSTREAM].watch.fd = fd;
    (void)address_of_peer(fd, &connection->source);
    connection_close(connection, DP_END_NO_RESOURCES, EMFILE);
}

void arrival_expired(struct timer *timer)
{
    connection_close(OWNER(timer, struct connection, timer), DP_END_HEADER_TIMEOUT, 0);
}

static void waiting_ready(struct watch *watch, uint32_t events)
{
    struct connection *connection = OWNER(watch, struct connection, side[DOWNSTREAM].watch);

    relay_note_events(connection, DOWNSTREAM, events);
    connection->side[DOWNSTREAM].readable = true;
    connection->side[DOWNSTREAM].writable = true;
    if (events & EPOLLERR)
        connection_close(connection, DP_END_DOWNSTREAM_RESET, ECONNRESET);
}

void downstream_waits(struct connection *connection)
{
    connection->side[DOWNSTREAM].watch.ready = waiting_ready;
}

void connection_refuse(struct connection *connection, enum dp_end end, int error)
{
    bool away = end == DP_END_NO_RESOURCES;
    struct mosnhook_answer answer = {
        .magic = MOSNHOOK_MAGIC,
        .version = MOSNHOOK_VERSION,
        .action = away ? MOSNHOOK_AWAY : MOSNHOOK_REFUSE,
        .error = error && !away ? error : ECONNREFUSED,
    };

    /* A caller that no longer listens (it was interrupted, or its timeout passed) watches its
     * socket instead, like one that never waited. */
    if (atomic_load_explicit(&connection->phase, memory_order_relaxed) == PHASE_CLOSED)
        return;
    if (connection->waits && send(connection->request.fd, &answer, sizeof answer,
                                  MSG_NOSIGNAL | MSG_DONTWAIT) == sizeof answer)
        foreign_close(connection, &connection->application); /* its own to disconnect */
    if (connection->application >= 0 && park_fail(connection, answer.error)) {
        connection->end = (uint8_t)end;
        connection->error = error;
        close_side(connection->worker, &connection->side[UPSTREAM], true);
        connection_enter(connection, PHASE_FAILING);
        return;
    }
    connection_close(connection, end, error);
}

/* Whether its worker could still come upon it, although the control thread may free it. */
static inline bool is_listed(const struct connection *connection)
{
    return task_is_scheduled(&connection->task) || timer_is_set(&connection->timer) ||
           connection->accelerated || direct_lists(connection) ||
           connection->side[DOWNSTREAM].watch.fd >= 0 || connection->side[UPSTREAM].watch.fd >= 0 ||
           connection->request.fd >= 0;
}

void connections_hand_over(struct worker *worker)
{
    struct dp *dp = worker->dp;
    struct connection *first = worker->closed, *last = first, *head;
    size_t count = 1;
    uint64_t one = 1;

    if (!first)
        return;
    assert(!is_listed(last));
    while (last->next_closed) {
        assert(!is_listed(last->next_closed));
        last = last->next_closed;
        count++;
    }
    worker->closed = NULL;
    count += atomic_fetch_add_explicit(&dp->unreported, count, memory_order_relaxed);
    STACK_PUSH_CHAIN(&dp->closed, first, last, next_closed, &head);
    if (!head && write(dp->event, &one, sizeof one) < 0)
        one = 0; /* an eventfd at its limit is readable all the same */
    if (count > MAX_UNREPORTED && !dp->joined)
        reports_drop(dp);
}

/* The worker writes `source` late where it does not know it before: of a socket that came unparked,
 * and of one that the application connects itself. */
static bool source_is_final(const struct connection *connection, enum phase phase)
{
    if (connection->listener->settings.transport != DP_TRANSPORT_UNIX)
        return phase >= PHASE_CONNECTING;
    return phase >= PHASE_CONNECTING && phase != PHASE_DIRECT &&
           (connection->parked || phase >= PHASE_RELAYING);
}

void connection_describe(const struct connection *connection, uint64_t now_ns,
                         struct dp_record *record)
{
    enum phase phase = atomic_load_explicit(&connection->phase, memory_order_acquire);

    memset(record, 0, sizeof *record);
    record->id = connection->id;
    record->opened_ns = connection->opened_real_ns;
    record->duration_ns =
        (phase == PHASE_CLOSED ? connection->closed_ns : now_ns) - connection->opened_ns;
    record->bytes_sent =
        atomic_load_explicit(&connection->flow[DOWNSTREAM].bytes, memory_order_relaxed);
    record->bytes_received =
        atomic_load_explicit(&connection->flow[UPSTREAM].bytes, memory_order_relaxed);
    record->transport = (uint16_t)connection->listener->settings.transport;
    record->direction = (uint16_t)connection->listener->settings.direction;
    record->path = atomic_load_explicit(&connection->path, memory_order_relaxed);
    record->uid = UINT32_MAX;
    record->route = UINT32_MAX;
    if (source_is_final(connection, phase))
        record->source = connection->source;
    if (phase >= PHASE_CONNECTING) {
        record->original_destination = connection->original_destination;
        record->pid = connection->pid;
        record->uid = connection->uid;
        record->route = connection->route;
        record->action = connection->action;
        memcpy(record->command, connection->command, sizeof record->command);
    }
    record->rtt_us = atomic_load_explicit(&connection->rtt_us, memory_order_relaxed);
    if (phase == PHASE_DIRECT) {
        record->source = connection->seen_source;
        record->bytes_sent =
            atomic_load_explicit(&connection->seen_bytes[DOWNSTREAM], memory_order_relaxed);
        record->bytes_received =
            atomic_load_explicit(&connection->seen_bytes[UPSTREAM], memory_order_relaxed);
    }
    if (phase >= PHASE_RELAYING)
        record->upstream = connection->upstream;
    if (phase == PHASE_CLOSED) {
        record->end = connection->end;
        record->error = connection->error;
    }
}

void connection_free(struct connection *connection)
{
    free(connection);
}
