#include "api/dataplane.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "api/plane.h"
#include "base/clock.h"
#include "base/fd.h"
#include "intercept/control.h"
#include "intercept/handover.h"
#include "l4/direct.h"
#include "l4/sockmap.h"
#include "l4/tunnel.h"
#include "l7/downstream.h"
#include "l7/http2.h"
#include "l7/http2_status.h"
#include "l7/streams.h"
#include "l7/router.h"
#include "net/foreign.h"
#include "rules.h"

enum { FDS_SPARE = 64 + DP_ADMIN_CONNECTIONS }; /* left for the control plane */

/* ---- who serves what ---- */

static void opened(struct session *session)
{
    inbox_opened(session->worker->inbox, session);
}

static void decided(struct session *session, enum dp_action action)
{
    inbox_decided(session->worker->inbox, session, action);
}

static void closed(struct session *session)
{
    inbox_closed(session->worker->inbox, session);
}

static void request_ended(struct session *session, const struct dp_request *request,
                          struct standing *standing, struct endpoint *endpoint)
{
    inbox_request_ended(session->worker->inbox, request, standing, endpoint);
    trace(session->worker, session->id, request_ended, request->status, failure_of(request->flags));
}

static void copy_ended(struct worker *worker, const struct dp_request *request,
                       struct standing *standing, struct endpoint *endpoint)
{
    requests_count(worker->index, request, standing, endpoint);
}

static void span_ended(struct session *session, const struct dp_span *span)
{
    inbox_span_ended(session->worker->inbox, span);
}

/* At a listener of ours, which says what it is for; no route is asked. */
static void arrived_by_itself(struct session *session)
{
    struct worker *worker = session->worker;
    struct entrance entrance = router_entrance(worker, session->origin.listener->number);
    struct choice choice = {.route = MOSNHOOK_NO_RULE};

    session->route = MOSNHOOK_NO_RULE;
    if (entrance.protocol != DP_TCP) {
        downstream_start(session, &choice, entrance.protocol, entrance.detect_ms,
                         entrance.undetected);
        return;
    }
    if (!entrance.service || !entrance.service->cluster) {
        session_refuse(session, DP_END_UPSTREAM_CONNECT, ECONNREFUSED);
        return;
    }
    choice_of_service(&choice, worker, entrance.service);
    tunnel_start(session, &choice);
}

/* Where the application cannot connect itself, `direct` is a relay, too. */
static void arrived(struct session *session)
{
    struct choice choice;
    enum dp_end end;

    if (session->origin.listener->transport == DP_TRANSPORT_LISTENER) {
        arrived_by_itself(session);
        return;
    }
    end = choice_begin(&choice, session->worker, &session->origin);
    session->route = choice.route;
    trace(session->worker, session->id, routed, choice.route, choice.action);
    if (end == DP_END_NONE && choice.action == DP_REQUESTS) {
        downstream_start(session, &choice, choice.protocol, choice.detect_ms, choice.undetected);
        return;
    }
    if (end == DP_END_NONE) {
        tunnel_start(session, &choice);
        return;
    }
    decided(session, end == DP_END_REFUSED_BY_ROUTE ? DP_REFUSE : DP_RELAY);
    session_refuse(session, end, ECONNREFUSED);
}

static const struct session_handler handler = {
    .opened = opened,
    .decided = decided,
    .closed = closed,
    .arrived = arrived,
    .asks = direct_ask,
    .let_go = sockmap_prepare,
    .request_ended = request_ended,
    .copy_ended = copy_ended,
    .span_ended = span_ended,
    .flow_ops = sockmap_ops,
};

/* ---- creation ---- */

static void share(struct dp *dp, struct worker *worker)
{
    worker->timeouts = &dp->timeouts;
    worker->budget = &dp->budget;
    worker->foreign = dp->foreign;
    worker->routes = &dp->routes;
    worker->clients = &dp->clients;
    worker->parks = &dp->parks;
    worker->listeners = &dp->listeners;
    worker->accelerator = &dp->accelerator;
    worker->limits = &dp->limits;
    worker->wanted = &dp->wanted;
    worker->tracing = &dp->tracing;
    worker->handler = &handler;
}

/* 0 or -errno. */
static int create_workers(struct dp *dp, uint32_t workers)
{
    int result = 0;

    dp->workers = calloc(workers, sizeof *dp->workers);
    dp->threads = calloc(workers, sizeof *dp->threads);
    dp->inboxes.each = calloc(workers, sizeof *dp->inboxes.each);
    if (!dp->workers || !dp->threads || !dp->inboxes.each)
        return -ENOMEM;
    dp->listeners.workers = dp->workers;
    dp->listeners.worker_count = workers;
    atomic_store(&dp->listeners.undrained, workers);
    for (uint32_t i = 0; i < workers && result == 0; i++) {
        share(dp, &dp->workers[i]);
        dp->threads[i].inboxes = &dp->inboxes;
        dp->inboxes.each[i] = &dp->threads[i].inbox;
        dp->threads[i].stopping = &dp->stopping;
        dp->worker_count = i + 1;
        result = thread_create(&dp->threads[i], dp->workers, workers, i);
        dp->inboxes.count = i + 1;
    }
    return result;
}

struct dp *dp_create(uint32_t workers, const struct dp_timeouts *timeouts)
{
    struct dp *dp;
    int result = 0;

    if (workers == 0) {
        errno = EINVAL;
        return NULL;
    }
    dp = calloc(1, sizeof *dp);
    if (!dp)
        return NULL;
    dp->event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (dp->event < 0)
        result = -errno;
    dp->foreign = foreign_create();
    if (!dp->foreign)
        result = -ENOMEM;
    dp->budget.foreign = dp->foreign;
    dp->budget.event = dp->event;
    dp->listeners.event = dp->event;
    dp->inboxes.reports.event = dp->event;
    dp->wanted.event = dp->event;
    routes_init(&dp->routes, dp->event);
    directories_init(&dp->directories, &dp->routes.registry, workers);
    dp_set_timeouts(dp, timeouts);
    dp->limits = (struct limits){
        .line_bytes = 8 * 1024, .head_bytes = 64 * 1024, .fields = 100, .frame_bytes = 16 << 20};
    if (result == 0)
        result = create_workers(dp, workers);
    if (result < 0) {
        dp_destroy(dp);
        errno = -result;
        return NULL;
    }
    return dp;
}

void dp_destroy(struct dp *dp)
{
    inboxes_leave_walks(&dp->inboxes);
    for (uint32_t i = 0; i < dp->worker_count; i++)
        thread_destroy(&dp->threads[i]);
    assert(atomic_load(&dp->budget.reserved) == 0);
    if (atomic_load(&dp->listeners.undrained) > 0) /* some worker never accepted */
        listeners_close(&dp->listeners, dp->foreign);
    parks_close(&dp->parks);
    accelerator_close(&dp->accelerator);
    close_fd(&dp->event);
    wanted_close(&dp->wanted);
    directories_close(&dp->directories);
    routes_close(&dp->routes);
    foreign_release(dp->foreign);
    clients_free(&dp->clients);
    free(dp->inboxes.each);
    free(dp->threads);
    free(dp->workers);
    free(dp);
}

/* ---- set-up ---- */

int dp_add_listener(struct dp *dp, int fd, const struct dp_listener *listener)
{
    int result = listeners_add(&dp->listeners, fd, listener);

    if (result < 0)
        close(fd);
    return result;
}

int dp_add_park(struct dp *dp, struct mosnhook_address *address)
{
    return parks_add(&dp->parks, address);
}

int dp_set_clients(struct dp *dp, int everybody_else, const uint32_t *uids, size_t count)
{
    return clients_set(&dp->clients, everybody_else, uids, count);
}

int dp_set_own_addresses(struct dp *dp, const struct mosnhook_address *addresses, size_t count)
{
    return routes_set_own(&dp->routes, addresses, count);
}

int dp_has_http2(void)
{
    return http2_is_built_in();
}

uint32_t dp_http2_status(const uint8_t *block, size_t size)
{
    return http2_status(block, size);
}

int dp_accelerate(struct dp *dp, const char *path, const struct dp_acceleration *settings,
                  char *reason)
{
    return accelerator_open(&dp->accelerator, path, settings, reason);
}

int dp_parking_works(const struct mosnhook_address *address)
{
    return park_works(address);
}

int dp_direct_works(void)
{
    return direct_works();
}

void dp_set_page(struct dp *dp, struct mosnhook_page *page)
{
    dp->page = page;
    dp->budget.page = page;
    for (uint32_t i = 0; i < dp->worker_count; i++)
        dp->workers[i].page = page;
}

void dp_page_begin(struct mosnhook_page *page)
{
    __atomic_store_n(&page->sequence, page->sequence | 1, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

void dp_page_end(struct mosnhook_page *page)
{
    __atomic_store_n(&page->sequence, (page->sequence | 1) + 1, __ATOMIC_RELEASE);
}

void dp_set_timeouts(struct dp *dp, const struct dp_timeouts *timeouts)
{
    atomic_store(&dp->timeouts.connect_ms, timeouts->connect_ms);
    atomic_store(&dp->timeouts.idle_ms, timeouts->idle_ms);
    atomic_store(&dp->timeouts.header_ms, timeouts->header_ms);
    atomic_store(&dp->timeouts.ejection_ms, timeouts->ejection_ms);
    atomic_store(&dp->timeouts.flush_ms, timeouts->flush_ms);
}

int dp_set_request_limits(struct dp *dp, const struct dp_request_limits *limits)
{
    if (limits->fields > MAX_FIELDS)
        return -EINVAL;
    dp->limits = (struct limits){
        .line_bytes = limits->line_bytes,
        .head_bytes = limits->head_bytes,
        .fields = limits->fields,
        .frame_bytes = limits->frame_bytes,
    };
    return 0;
}

int dp_set_tracing(struct dp *dp, const struct dp_tracing *settings)
{
    return tracing_set(&dp->tracing, settings) ? 0 : -EINVAL;
}

/* ---- routes ---- */

static void wake_workers(struct dp *dp)
{
    for (uint32_t i = 0; i < dp->worker_count; i++)
        worker_wake(&dp->workers[i]);
}

int dp_set_routes(struct dp *dp, uint32_t which, const struct mosnhook_rules *rules,
                  const struct dp_route *routes, size_t route_count,
                  const struct mosnhook_address *endpoints, size_t endpoint_count)
{
    struct table *table;

    if (which >= TABLES)
        return -EINVAL;
    keeper_collect(&dp->routes.registry.keeper);
    table = table_create(&dp->routes.registry, which, rules, routes, route_count, endpoints,
                         endpoint_count, dp->routes.tables[which]);
    if (!table)
        return -errno;
    for (uint32_t i = 0; i < dp->worker_count; i++)
        tables_offer(dp->workers[i].tables, which, table);
    table_drop(dp->routes.tables[which]);
    dp->routes.tables[which] = table;
    wake_workers(dp);
    return 0;
}

int dp_set_services(struct dp *dp, const struct dp_services *services)
{
    struct directory *directory;

    keeper_collect(&dp->routes.registry.keeper);
    directory = directory_create(&dp->directories, services);
    if (!directory)
        return -errno;
    for (uint32_t i = 0; i < dp->worker_count; i++)
        router_offer(dp->workers[i].router, directory);
    directories_set(&dp->directories, directory);
    wake_workers(dp);
    return 0;
}

size_t dp_take_wanted(struct dp *dp, struct dp_wanted *wanted, size_t max)
{
    return wanted_take(&dp->wanted, wanted, max);
}

/* Without routes every connection goes to its original destination. */
static int ensure_tables(struct dp *dp)
{
    static const struct mosnhook_rules none = {.size = sizeof none};
    int result = 0;

    for (uint32_t which = 0; which < TABLES && result == 0; which++)
        if (!dp->routes.tables[which])
            result = dp_set_routes(dp, which, &none, NULL, 0, NULL, 0);
    return result;
}

size_t dp_ejected(struct dp *dp, struct dp_ejected *ejected, size_t max)
{
    uint64_t since_ms = ejected_since(&dp->timeouts, clock_ns(CLOCK_MONOTONIC) / NS_PER_MS);
    size_t count = 0;

    for (uint32_t direction = 0; direction < DP_DIRECTIONS; direction++) {
        const struct table *table = dp->routes.tables[direction];

        for (uint32_t route = 0; table && route < table->route_count; route++) {
            const struct cluster *cluster = table->routes[route].cluster;

            for (uint32_t i = 0; cluster && i < cluster->count; i++)
                if (endpoint_is_ejected(cluster->endpoints[i], since_ms) && count++ < max)
                    ejected[count - 1] =
                        (struct dp_ejected){cluster->endpoints[i]->address, direction, route};
        }
    }
    return count;
}

/* ---- life ---- */

void dp_keep_fds(struct dp *dp, uint32_t count)
{
    dp->kept_fds = count;
}

int plane_prepare(struct dp *dp)
{
    int spare = FDS_SPARE + (int)(dp->kept_fds + dp->worker_count * FDS_TO_REFUSE);
    int result = ensure_tables(dp);

    if (result == 0 && !budget_measure(&dp->budget, spare))
        result = -EMFILE;
    if (result < 0)
        return result;
    if (dp->page) {
        __atomic_store_n(&dp->page->full, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&dp->page->accelerates, dp->accelerator.object != NULL, __ATOMIC_RELAXED);
    }
    dp->started = true;
    for (uint32_t i = 0; i < dp->worker_count && result == 0; i++)
        result = thread_prepare(&dp->threads[i]);
    return result;
}

int dp_start(struct dp *dp)
{
    sigset_t all, before;
    int result = plane_prepare(dp);

    /* Signals go to the control plane's thread. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (uint32_t i = 0; i < dp->worker_count && result == 0; i++)
        result = thread_start(&dp->threads[i]);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (result < 0)
        dp_stop(dp);
    return result;
}

int dp_event_fd(struct dp *dp)
{
    return dp->event;
}

void dp_drain(struct dp *dp)
{
    atomic_store_explicit(&dp->listeners.draining, true, memory_order_release);
    wake_workers(dp);
}

/* Ends a session for which there will be no more events. */
static void end_now(struct session *session)
{
    if (session_state(session) == SESSION_DIRECT) {
        session_close(session, DP_END_LEFT, 0);
        return;
    }
    /* It may be failing already. */
    if (session_state(session) != SESSION_FAILING)
        session_refuse(session, DP_END_DRAIN_LIMIT, 0);
    if (session_state(session) == SESSION_FAILING) /* nobody waits until it has failed */
        session_close(session, session->end, session->error);
}

void dp_stop(struct dp *dp)
{
    if (!dp->started || dp->joined)
        return;
    dp_drain(dp);
    atomic_store_explicit(&dp->stopping, true, memory_order_release);
    wake_workers(dp);
    for (uint32_t i = 0; i < dp->worker_count; i++)
        if (dp->threads[i].started)
            pthread_join(dp->threads[i].id, NULL);
    dp->joined = true;
    /* The workers are gone: this thread has their sessions now, and the connections on their way
     * between them. */
    for (uint32_t i = 0; i < dp->worker_count; i++)
        handover_take(&dp->workers[i]);
    inboxes_look(&dp->inboxes);
    for (uint32_t i = 0; i < dp->worker_count; i++) {
        for (struct session *session = dp->threads[i].inbox.live; session;
             session = session->live_next)
            end_now(session);
        inbox_end_turn(&dp->threads[i].inbox, &dp->workers[i]);
        listener_leave_all(&dp->workers[i]);
    }
}

/* ---- reports ---- */

int dp_keep_closed(struct dp *dp, size_t records)
{
    for (uint32_t i = 0; i < dp->worker_count; i++) {
        struct report *report = &dp->threads[i].inbox.report;

        report_destroy(report);
        if (report_create(report, &dp->inboxes.reports, records) < 0)
            return -ENOMEM;
    }
    return 0;
}

void dp_clear_event(struct dp *dp)
{
    reports_acknowledge(&dp->inboxes.reports);
    keeper_collect(&dp->routes.registry.keeper);
}

size_t dp_take_closed(struct dp *dp, struct dp_record *records, size_t max)
{
    size_t taken = 0;

    for (uint32_t i = 0; i < dp->worker_count; i++)
        taken += report_take(&dp->threads[i].inbox.report, records + taken, max - taken);
    return taken;
}

void dp_read_tallies(struct dp *dp, struct dp_tallies *tallies)
{
    inboxes_read_tallies(&dp->inboxes, tallies);
}

/* Whether all texts are shorter than `size`. */
static bool fit(const char *const *texts, size_t count, size_t size)
{
    for (size_t i = 0; i < count; i++)
        if (texts[i] && strnlen(texts[i], size) == size)
            return false;
    return true;
}

int dp_log(struct dp *dp, const struct dp_log_texts *texts, uint32_t kinds)
{
    struct reports *reports = &dp->inboxes.reports;

    /* The struct consists of texts only. */
    if (!fit((const char *const *)texts, sizeof *texts / sizeof(char *), DP_LOG_TEXT_BYTES) ||
        !fit(texts->flags, DP_FLAGS, DP_LOG_FLAG_BYTES))
        return -EINVAL;
    atomic_store_explicit(&reports->texts, texts, memory_order_release);
    atomic_store_explicit(&reports->kinds, kinds, memory_order_release);
    return 0;
}

size_t dp_take_lines(struct dp *dp, char *buffer)
{
    size_t taken = 0;

    for (uint32_t i = 0; i < dp->worker_count; i++)
        taken += report_take_lines(&dp->threads[i].inbox.report, buffer + taken,
                                   DP_LOG_BLOCK_BYTES - taken);
    return taken;
}

/* ---- trace ---- */

int dp_trace(struct dp *dp, int on)
{
    int result = 0;

    for (uint32_t i = 0; i < dp->worker_count && on && result == 0; i++)
        result = trace_begin(&dp->workers[i].trace);
    for (uint32_t i = 0; i < dp->worker_count && (!on || result < 0); i++)
        trace_end(&dp->workers[i].trace);
    return result;
}

/* Each worker has the same share: a busy one leaves room to the others. */
size_t dp_take_trace(struct dp *dp, struct dp_trace_event *events, size_t max, uint64_t *missed)
{
    size_t taken = 0;

    for (uint32_t i = 0; i < dp->worker_count; i++)
        taken += trace_take(&dp->workers[i].trace, events + taken, max / dp->worker_count, missed);
    return taken;
}

/* ---- snapshots, and sums ---- */

size_t dp_snapshot(struct dp *dp, struct dp_record *records, size_t max)
{
    return inboxes_snapshot(&dp->inboxes, records, max);
}

struct dp_walk *dp_walk_begin(struct dp *dp)
{
    return inboxes_walk(&dp->inboxes);
}

/* Counts what is on its way between workers first: it may become open meanwhile. */
size_t dp_passing(struct dp *dp)
{
    size_t pending = 0;

    for (uint32_t i = 0; i < dp->worker_count; i++)
        pending += handover_pending(&dp->workers[i]);
    return pending + inboxes_count_open(&dp->inboxes, false);
}

int dp_drained(struct dp *dp)
{
    return atomic_load_explicit(&dp->listeners.undrained, memory_order_acquire) == 0;
}

size_t dp_loads(struct dp *dp, uint64_t *loads, size_t max)
{
    for (uint32_t i = 0; i < dp->worker_count && i < max; i++)
        loads[i] = handover_load(&dp->workers[i]);
    return dp->worker_count;
}

void dp_read_counters(struct dp *dp, struct dp_counters *sum)
{
    memset(sum, 0, sizeof *sum);
    for (uint32_t i = 0; i < dp->worker_count; i++) {
        const struct counters *counters = &dp->workers[i].counters;

        sum->accepted += counter_read(&counters->accepted);
        sum->closed += report_count_closed(&dp->threads[i].inbox.report);
        sum->bytes_sent += counter_read(&counters->bytes[DOWNSTREAM]);
        sum->bytes_received += counter_read(&counters->bytes[UPSTREAM]);
        sum->bytes_spliced += counter_read(&counters->bytes_spliced);
        sum->connect_failures += counter_read(&counters->connect_failures);
        sum->accept_pauses += counter_read(&counters->accept_pauses);
        sum->streams_refused += counter_read(&counters->streams_refused);
        sum->streams_not_taken += counter_read(&counters->streams_not_taken);
        sum->buffers += counter_read(&counters->buffers);
    }
    sum->connection_bytes = sizeof(struct session) + sizeof(struct tunnel);
    sum->fds_used = (uint64_t)budget_used(&dp->budget);
    sum->fds_budget = (uint64_t)dp->budget.most;
    sum->fds_limit = (uint64_t)dp->budget.limit;
    sum->full = atomic_load_explicit(&dp->budget.full, memory_order_relaxed);
}
