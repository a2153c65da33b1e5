#include "api/inbox.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/stack.h"
#include "l4/direct.h"

enum { KEPT_RECORDS = 1024, KEPT_SPANS = 2048 };

_Static_assert(sizeof(struct dp_span) % sizeof(uint64_t) == 0, "spans are copied in words");

/* The worker writes `source` late where it does not know it before: of a socket that came unparked,
 * and of one that the application connects itself. */
static bool source_is_final(const struct session *session, enum session_state state)
{
    return state >= SESSION_CONNECTING && state != SESSION_DIRECT &&
           (!session->late_source || state >= SESSION_SERVED);
}

static void describe(const struct session *session, enum session_state state, uint64_t now_ns,
                     struct dp_record *record)
{
    const struct dp_listener *listener = session->origin.listener;

    memset(record, 0, sizeof *record);
    record->id = session->id;
    record->opened_ns = session->opened_real_ns;
    record->duration_ns =
        (state == SESSION_CLOSED ? session->closed_ns : now_ns) - session->opened_ns;
    record->bytes_sent = counter_read(&session->bytes[DOWNSTREAM]);
    record->bytes_received = counter_read(&session->bytes[UPSTREAM]);
    record->transport = (uint16_t)listener->transport;
    record->direction = (uint16_t)listener->direction;
    record->path = atomic_load_explicit(&session->path, memory_order_relaxed);
    record->uid = UINT32_MAX;
    record->route = UINT32_MAX;
    if (source_is_final(session, state))
        record->source = session->origin.source;
    if (state >= SESSION_CONNECTING) {
        record->original_destination = session->origin.original_destination;
        record->pid = session->pid;
        record->uid = session->uid;
        record->route = session->route;
        record->action = session->action;
        memcpy(record->command, session->command, sizeof record->command);
    }
    record->rtt_us = atomic_load_explicit(&session->rtt_us, memory_order_relaxed);
    if (state == SESSION_DIRECT)
        direct_last_seen(session, &record->source, &record->bytes_sent, &record->bytes_received);
    if (state >= SESSION_SERVED)
        record->upstream = session->upstream;
    if (state == SESSION_CLOSED) {
        record->end = session->end;
        record->error = session->error;
    }
}

/* ---- a worker's side ---- */

int inbox_open(struct inbox *inbox, struct inboxes *all, unsigned index)
{
    inbox->all = all;
    inbox->index = index;
    pthread_mutex_init(&inbox->lock, NULL);
    if (requests_create(&inbox->requests) < 0 ||
        ring_create(&inbox->spans, sizeof(struct dp_span), KEPT_SPANS) < 0)
        return -ENOMEM;
    return report_create(&inbox->report, &all->reports, KEPT_RECORDS);
}

void inbox_close(struct inbox *inbox)
{
    assert(!inbox->live);
    report_destroy(&inbox->report);
    requests_destroy(&inbox->requests);
    ring_destroy(&inbox->spans);
    pthread_mutex_destroy(&inbox->lock);
}

void inbox_opened(struct inbox *inbox, struct session *session)
{
    const struct dp_listener *listener = session->origin.listener;
    struct session *was;

    session->id = atomic_fetch_add_explicit(&inbox->all->next_id, 1, memory_order_relaxed) + 1;
    report_opened(&inbox->report, listener->direction, listener->transport);
    STACK_PUSH_CHAIN(&inbox->opened, session, session, next_opened, &was);
}

void inbox_decided(struct inbox *inbox, struct session *session, enum dp_action action)
{
    const struct dp_listener *listener = session->origin.listener;

    report_action(&inbox->report, listener->direction, listener->transport, session->action,
                  action);
    session->action = (uint8_t)action;
}

void inbox_closed(struct inbox *inbox, const struct session *session)
{
    struct dp_record record;

    describe(session, SESSION_CLOSED, 0, &record);
    report_closed(&inbox->report, &record);
}

void inbox_request_ended(struct inbox *inbox, const struct dp_request *request,
                         struct standing *standing, struct endpoint *endpoint)
{
    requests_ended(&inbox->requests, inbox->index, request, standing, endpoint);
    report_request(&inbox->report, request);
}

void inbox_span_ended(struct inbox *inbox, const struct dp_span *span)
{
    ring_write(&inbox->spans, span);
}

/* The lock is taken. */
static void complete(struct inbox *inbox)
{
    struct session *session = STACK_TAKE(&inbox->opened);

    for (; session; session = session->next_opened) {
        session->live_previous = NULL;
        session->live_next = inbox->live;
        if (inbox->live)
            inbox->live->live_previous = session;
        inbox->live = session;
    }
}

/* A walk over the open sessions that is done in pieces. */
struct dp_walk {
    struct inboxes *all; /* NULL: they are gone */
    struct dp_walk *next;
    struct session *at[]; /* by worker, under its lock: the next one to be described */
};

static void leave(struct inbox *inbox, struct session *session)
{
    for (struct dp_walk *walk = inbox->all->walks; walk; walk = walk->next)
        if (walk->at[inbox->index] == session)
            walk->at[inbox->index] = session->live_next;
    if (session->live_previous)
        session->live_previous->live_next = session->live_next;
    else
        inbox->live = session->live_next;
    if (session->live_next)
        session->live_next->live_previous = session->live_previous;
}

void inbox_end_turn(struct inbox *inbox, struct worker *worker)
{
    report_announce(&inbox->report);
    if (!worker->closed || pthread_mutex_trylock(&inbox->lock) != 0)
        return;
    complete(inbox);
    while (worker->closed) {
        struct session *session = worker->closed;

        worker->closed = session->next_closed;
        leave(inbox, session);
        session_free(session);
    }
    pthread_mutex_unlock(&inbox->lock);
}

/* ---- the control thread's side ---- */

static void lock_all(struct inboxes *all)
{
    for (uint32_t i = 0; i < all->count; i++) {
        pthread_mutex_lock(&all->each[i]->lock);
        complete(all->each[i]);
    }
}

static void unlock_all(struct inboxes *all)
{
    for (uint32_t i = 0; i < all->count; i++)
        pthread_mutex_unlock(&all->each[i]->lock);
}

/* With all locks. */
static void look(struct inboxes *all)
{
    for (uint32_t i = 0; i < all->count; i++)
        direct_look(all->each[i]->live);
}

void inboxes_look(struct inboxes *all)
{
    lock_all(all);
    look(all);
    unlock_all(all);
}

/* From `first` on; those that are closed, but not freed yet, were reported as such. Returns where
 * it ended, since there was no more room, or NULL. */
static struct session *describe_from(struct session *first, struct dp_record *records, size_t max,
                                     size_t *stored)
{
    uint64_t now = clock_ns(CLOCK_MONOTONIC);

    for (; first && *stored < max; first = first->live_next) {
        enum session_state state = atomic_load_explicit(&first->state, memory_order_acquire);

        if (state != SESSION_CLOSED)
            describe(first, state, now, &records[(*stored)++]);
    }
    return first;
}

size_t inboxes_snapshot(struct inboxes *all, struct dp_record *records, size_t max)
{
    size_t stored = 0;

    if (max > 0) {
        lock_all(all);
        look(all);
        for (uint32_t i = 0; i < all->count; i++)
            (void)describe_from(all->each[i]->live, records, max, &stored);
        unlock_all(all);
    }
    return inboxes_count_open(all, true);
}

struct dp_walk *inboxes_walk(struct inboxes *all)
{
    struct dp_walk *walk = calloc(1, sizeof *walk + all->count * sizeof *walk->at);

    if (!walk)
        return NULL;
    walk->all = all;
    lock_all(all);
    look(all);
    for (uint32_t i = 0; i < all->count; i++)
        walk->at[i] = all->each[i]->live;
    walk->next = all->walks;
    all->walks = walk;
    unlock_all(all);
    return walk;
}

size_t dp_walk_next(struct dp_walk *walk, struct dp_record *records, size_t max)
{
    struct inboxes *all = walk->all;
    size_t stored = 0;

    for (uint32_t i = 0; all && i < all->count && stored < max; i++) {
        pthread_mutex_lock(&all->each[i]->lock);
        walk->at[i] = describe_from(walk->at[i], records, max, &stored);
        pthread_mutex_unlock(&all->each[i]->lock);
    }
    return stored;
}

void dp_walk_end(struct dp_walk *walk)
{
    struct inboxes *all = walk->all;

    if (all) {
        struct dp_walk **link = &all->walks;

        lock_all(all);
        while (*link != walk)
            link = &(*link)->next;
        *link = walk->next;
        unlock_all(all);
    }
    free(walk);
}

void inboxes_leave_walks(struct inboxes *all)
{
    for (struct dp_walk *walk = all->walks; walk; walk = walk->next)
        walk->all = NULL;
}

void inboxes_read_tallies(const struct inboxes *all, struct dp_tallies *tallies)
{
    memset(tallies, 0, sizeof *tallies);
    for (uint32_t i = 0; i < all->count; i++)
        report_add(&all->each[i]->report, tallies);
}

size_t inboxes_count_open(const struct inboxes *all, bool direct)
{
    struct dp_tallies tallies;
    size_t count = 0;

    inboxes_read_tallies(all, &tallies);
    for (int direction = 0; direction < DP_DIRECTIONS; direction++)
        for (int transport = 0; transport < DP_TRANSPORTS; transport++)
            for (int action = 0; action < DP_ACTIONS; action++)
                if (direct || action != DP_DIRECT)
                    count += tallies.open[direction][transport][action];
    return count;
}
