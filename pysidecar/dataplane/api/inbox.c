#include "api/inbox.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/stack.h"
#include "l4/direct.h"

enum { MAX_UNREPORTED = 1 << 16 }; /* closed sessions that the control thread has not taken */

/* The worker writes `source` late where it does not know it before: of a socket that came unparked,
 * and of one that the application connects itself. */
static bool source_is_final(const struct session *session, enum session_state state)
{
    return state >= SESSION_CONNECTING && state != SESSION_DIRECT &&
           (!session->late_source || state >= SESSION_SERVED);
}

static void describe(const struct session *session, uint64_t now_ns, struct dp_record *record)
{
    const struct dp_listener *listener = session->origin.listener;
    enum session_state state = atomic_load_explicit(&session->state, memory_order_acquire);

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
        record->source = *direct_source(session);
    if (state >= SESSION_SERVED)
        record->upstream = session->upstream;
    if (state == SESSION_CLOSED) {
        record->end = session->end;
        record->error = session->error;
    }
}

void inbox_take_opened(struct inbox *inbox)
{
    struct session *session = atomic_exchange_explicit(&inbox->opened, NULL, memory_order_acquire);

    for (; session; session = session->next_opened) {
        session->live_previous = NULL;
        session->live_next = inbox->live;
        if (inbox->live)
            inbox->live->live_previous = session;
        inbox->live = session;
        inbox->live_count++;
    }
}

/* A walk over the live sessions that is done in pieces. */
struct dp_walk {
    struct inbox *inbox; /* NULL: it is gone */
    struct dp_walk *next;
    struct session *at; /* the next one to be described */
};

static void remove_live(struct inbox *inbox, struct session *session)
{
    for (struct dp_walk *walk = inbox->walks; walk; walk = walk->next)
        if (walk->at == session)
            walk->at = session->live_next;
    if (session->live_previous)
        session->live_previous->live_next = session->live_next;
    else
        inbox->live = session->live_next;
    if (session->live_next)
        session->live_next->live_previous = session->live_previous;
    inbox->live_count--;
}

/* Moves both inboxes to the control thread's own lists. The closed ones first: whoever is among
 * them was announced as opened before, so the second exchange cannot miss it. */
static void take_inboxes(struct inbox *inbox)
{
    struct session *closed = atomic_exchange_explicit(&inbox->closed, NULL, memory_order_acquire);
    struct session *newest = closed, *in_order = NULL;

    inbox_take_opened(inbox);
    while (closed) { /* the inbox is a stack: newest first */
        struct session *next = closed->next_closed;

        remove_live(inbox, closed);
        closed->next_closed = in_order;
        in_order = closed;
        closed = next;
    }
    if (!newest)
        return;
    *inbox->to_report_tail = in_order;
    inbox->to_report_tail = &newest->next_closed;
}

static struct session *next_report(struct inbox *inbox)
{
    struct session *session = inbox->to_report;

    if (!session)
        return NULL;
    inbox->to_report = session->next_closed;
    if (!inbox->to_report)
        inbox->to_report_tail = &inbox->to_report;
    return session;
}

static void count_dropped(struct dp_dropped *dropped, const struct session *session)
{
    const struct dp_listener *listener = session->origin.listener;

    dropped->connections[listener->direction][listener->transport][session->action]++;
    dropped->ends[session->end]++;
}

static void drop(struct inbox *inbox)
{
    struct session *session;

    if (pthread_mutex_trylock(&inbox->lock) != 0)
        return; /* somebody takes or drops them just now */
    take_inboxes(inbox);
    while (atomic_load_explicit(&inbox->unreported, memory_order_relaxed) > MAX_UNREPORTED &&
           (session = next_report(inbox))) {
        count_dropped(&inbox->dropped, session);
        session_free(session);
        atomic_fetch_sub_explicit(&inbox->unreported, 1, memory_order_relaxed);
    }
    pthread_mutex_unlock(&inbox->lock);
}

void inbox_take_dropped(struct inbox *inbox, struct dp_dropped *dropped)
{
    pthread_mutex_lock(&inbox->lock);
    *dropped = inbox->dropped;
    memset(&inbox->dropped, 0, sizeof inbox->dropped);
    pthread_mutex_unlock(&inbox->lock);
}

void inbox_hand_over(struct inbox *inbox, struct worker *worker)
{
    struct session *first = worker->closed, *last = first, *head;
    size_t count = 1;
    uint64_t one = 1;

    if (!first)
        return;
    while (last->next_closed) {
        last = last->next_closed;
        count++;
    }
    worker->closed = NULL;
    count += atomic_fetch_add_explicit(&inbox->unreported, count, memory_order_relaxed);
    STACK_PUSH_CHAIN(&inbox->closed, first, last, next_closed, &head);
    if (!head && write(inbox->event, &one, sizeof one) < 0)
        one = 0; /* an eventfd at its limit is readable all the same */
    if (count > MAX_UNREPORTED && !inbox->joined)
        drop(inbox);
}

size_t inbox_take_closed(struct inbox *inbox, struct dp_record *records, size_t max)
{
    struct session *session;
    uint64_t count;
    size_t taken = 0;

    if (read(inbox->event, &count, sizeof count) < 0)
        count = 0; /* nobody announced anything: look all the same */
    pthread_mutex_lock(&inbox->lock);
    take_inboxes(inbox);
    for (; taken < max && (session = next_report(inbox)); taken++) {
        describe(session, 0, &records[taken]);
        session_free(session);
    }
    atomic_fetch_sub_explicit(&inbox->unreported, taken, memory_order_relaxed);
    pthread_mutex_unlock(&inbox->lock);
    return taken;
}

size_t inbox_snapshot(struct inbox *inbox, struct dp_record *records, size_t max)
{
    uint64_t now = clock_ns(CLOCK_MONOTONIC);
    size_t stored = 0, count;

    pthread_mutex_lock(&inbox->lock);
    take_inboxes(inbox);
    if (max > 0)
        direct_look(inbox->live);
    for (struct session *session = inbox->live; session && stored < max;
         session = session->live_next)
        describe(session, now, &records[stored++]);
    count = inbox->live_count;
    pthread_mutex_unlock(&inbox->lock);
    return count;
}

struct dp_walk *inbox_walk(struct inbox *inbox)
{
    struct dp_walk *walk = calloc(1, sizeof *walk);

    if (!walk)
        return NULL;
    walk->inbox = inbox;
    pthread_mutex_lock(&inbox->lock);
    take_inboxes(inbox);
    direct_look(inbox->live);
    walk->at = inbox->live;
    walk->next = inbox->walks;
    inbox->walks = walk;
    pthread_mutex_unlock(&inbox->lock);
    return walk;
}

size_t dp_walk_next(struct dp_walk *walk, struct dp_record *records, size_t max)
{
    struct inbox *inbox = walk->inbox;
    uint64_t now = clock_ns(CLOCK_MONOTONIC);
    size_t stored = 0;

    if (!inbox)
        return 0;
    pthread_mutex_lock(&inbox->lock);
    take_inboxes(inbox);
    for (; walk->at && stored < max; walk->at = walk->at->live_next)
        describe(walk->at, now, &records[stored++]);
    pthread_mutex_unlock(&inbox->lock);
    return stored;
}

void dp_walk_end(struct dp_walk *walk)
{
    struct inbox *inbox = walk->inbox;

    if (inbox) {
        struct dp_walk **link = &inbox->walks;

        pthread_mutex_lock(&inbox->lock);
        while (*link != walk)
            link = &(*link)->next;
        *link = walk->next;
        pthread_mutex_unlock(&inbox->lock);
    }
    free(walk);
}

size_t inbox_count_passing(struct inbox *inbox)
{
    size_t count;

    pthread_mutex_lock(&inbox->lock);
    take_inboxes(inbox);
    count = inbox->live_count;
    for (const struct session *session = inbox->live; session; session = session->live_next)
        count -= direct_is(session);
    pthread_mutex_unlock(&inbox->lock);
    return count;
}

/* ---- life ---- */

void inbox_init(struct inbox *inbox, int event)
{
    inbox->event = event;
    inbox->to_report_tail = &inbox->to_report;
    pthread_mutex_init(&inbox->lock, NULL);
}

void inbox_close(struct inbox *inbox)
{
    struct session *session;

    take_inboxes(inbox);
    while ((session = next_report(inbox)))
        session_free(session);
    for (struct dp_walk *walk = inbox->walks; walk; walk = walk->next)
        walk->inbox = NULL;
    assert(inbox->live_count == 0);
    pthread_mutex_destroy(&inbox->lock);
}

void inbox_opened(struct inbox *inbox, struct session *session)
{
    struct session *was;

    session->id = atomic_fetch_add_explicit(&inbox->next_id, 1, memory_order_relaxed) + 1;
    STACK_PUSH_CHAIN(&inbox->opened, session, session, next_opened, &was);
}
