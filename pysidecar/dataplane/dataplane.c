#include "dataplane.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "diag.h"
#include "internal.h"

/* ---- creation ---- */

static uint64_t own_namespace(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    uint64_t namespace = fd < 0 ? 0 : foreign_namespace(fd);

    close_fd(&fd);
    return namespace;
}

struct dp *dp_create(uint32_t workers, const struct dp_timeouts *timeouts)
{
    struct dp *dp;
    int error = 0;

    if (workers == 0) {
        errno = EINVAL;
        return NULL;
    }
    dp = calloc(1, sizeof *dp);
    if (!dp)
        return NULL;
    pthread_mutex_init(&dp->reports, NULL);
    dp->to_report_tail = &dp->to_report;
    dp->event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (dp->event < 0)
        error = errno;
    registry_init(&dp->registry, dp->event);
    dp->uid = geteuid();
    dp->namespace = own_namespace();
    dp_set_timeouts(dp, timeouts);
    dp->reapers = reapers_create();
    dp->workers = calloc(workers, sizeof *dp->workers);
    if (!dp->workers || !dp->reapers)
        error = ENOMEM;
    for (uint32_t i = 0; i < workers && error == 0; i++) {
        dp->worker_count = i + 1;
        error = -worker_create(&dp->workers[i], dp, i);
    }
    if (error) {
        dp_destroy(dp);
        errno = error;
        return NULL;
    }
    return dp;
}

static void take_inboxes(struct dp *dp);
static void leave_walks(struct dp *dp);

/* Reports that nobody took. */
static void free_reports(struct dp *dp)
{
    take_inboxes(dp);
    while (dp->to_report) {
        struct connection *connection = dp->to_report;

        dp->to_report = connection->next_closed;
        connection_free(connection);
    }
}

void dp_destroy(struct dp *dp)
{
    free_reports(dp);
    leave_walks(dp);
    for (uint32_t i = 0; i < dp->worker_count; i++)
        worker_destroy(&dp->workers[i]);
    assert(dp->live_count == 0 && atomic_load(&dp->fds_reserved) == 0);
    if (!dp->started) {
        for (size_t i = 0; i < dp->listener_count; i++)
            close(dp->listeners[i].fd);
    }
    for (size_t i = 0; i < dp->park_count; i++)
        park_close(&dp->parks[i]);
    accelerator_close(&dp->accelerator);
    close_fd(&dp->event);
    for (int which = 0; which < TABLES; which++)
        table_drop(dp->tables[which]);
    registry_close(&dp->registry);
    reapers_release(dp->reapers);
    free(dp->clients.uids);
    free(dp->own);
    free(dp->workers);
    pthread_mutex_destroy(&dp->reports);
    free(dp);
}

/* ---- set-up ---- */

int dp_add_listener(struct dp *dp, int fd, const struct dp_listener *listener)
{
    struct mosnhook_address here;
    int result = 0;

    if (dp->listener_count == MAX_LISTENERS)
        result = -ENOSPC;
    else if (listener->transport > DP_TRANSPORT_TPROXY || listener->direction >= DIRECTIONS)
        result = -EINVAL;
    else if (listener->transport != DP_TRANSPORT_UNIX) {
        result = tune_socket(fd); /* accepted sockets inherit it */
        if (address_of_local(fd, &here) == 0 && address_is_loopback(&here))
            tune_towards_this_host(fd);
    }
    if (result < 0) {
        close(fd);
        return result;
    }
    dp->listeners[dp->listener_count++] = (struct listener){.fd = fd, .settings = *listener};
    return 0;
}

int dp_add_park(struct dp *dp, struct mosnhook_address *address)
{
    struct park *park = &dp->parks[dp->park_count];
    int result;

    if (dp->park_count == MOSNHOOK_MAX_PARKS)
        return -ENOSPC;
    park->address = *address;
    result = park_open(park);
    if (result < 0)
        return result;
    *address = park->address;
    dp->park_count++;
    return 0;
}

int dp_set_own_addresses(struct dp *dp, const struct mosnhook_address *addresses, size_t count)
{
    struct mosnhook_address *own = calloc(count ? count : 1, sizeof *own);

    if (!own)
        return -ENOMEM;
    if (count)
        memcpy(own, addresses, count * sizeof *own);
    free(dp->own);
    dp->own = own;
    dp->own_count = count;
    return 0;
}

void dp_set_page(struct dp *dp, struct mosnhook_page *page)
{
    dp->page = page;
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
    keeper_collect(&dp->registry.keeper);
    table = table_create(&dp->registry, which, rules, routes, route_count, endpoints,
                         endpoint_count, dp->tables[which]);
    if (!table)
        return -errno;
    for (uint32_t i = 0; i < dp->worker_count; i++) {
        shared_reference(&table->shared);
        table_drop(atomic_exchange_explicit(&dp->workers[i].new_tables[which], table,
                                            memory_order_acq_rel));
    }
    table_drop(dp->tables[which]);
    dp->tables[which] = table;
    wake_workers(dp);
    return 0;
}

void dp_set_timeouts(struct dp *dp, const struct dp_timeouts *timeouts)
{
    atomic_store(&dp->connect_ms, timeouts->connect_ms);
    atomic_store(&dp->idle_ms, timeouts->idle_ms);
    atomic_store(&dp->header_ms, timeouts->header_ms);
    atomic_store(&dp->ejection_ms, timeouts->ejection_ms);
}

/* ---- life ---- */

static int open_fds(void)
{
    DIR *directory = opendir("/proc/self/fd");
    int count = 0;

    if (!directory)
        return 256;
    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

/* Without routes every connection goes to its original destination. */
static int ensure_tables(struct dp *dp)
{
    static const struct mosnhook_rules none = {.size = sizeof none};
    int result = 0;

    for (uint32_t which = 0; which < TABLES && result == 0; which++)
        if (!atomic_load(&dp->workers[0].new_tables[which]))
            result = dp_set_routes(dp, which, &none, NULL, 0, NULL, 0);
    return result;
}

int dp_start(struct dp *dp)
{
    struct rlimit limit;
    sigset_t all, before;
    int error = -ensure_tables(dp);

    if (error)
        return -error;
    getrlimit(RLIMIT_NOFILE, &limit);
    dp->fds_limit = (int)(limit.rlim_cur > INT32_MAX ? INT32_MAX : limit.rlim_cur);
    dp->fds_budget = dp->fds_limit - open_fds() - FDS_SPARE - (int)dp->worker_count * FDS_TO_REFUSE;
    if (dp->fds_budget < FDS_PER_REQUEST)
        return -EMFILE;
    if (dp->page) {
        __atomic_store_n(&dp->page->full, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&dp->page->accelerates, dp->accelerator.object != NULL, __ATOMIC_RELAXED);
    }
    atomic_store(&dp->undrained, dp->worker_count);
    dp->started = true;
    /* Signals are the control plane's: its thread must be the one that gets them. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (uint32_t i = 0; i < dp->worker_count && error == 0; i++) {
        struct worker *worker = &dp->workers[i];

        char name[16]; /* for top(1) and debuggers */

        error = worker_prepare(worker) ? pthread_create(&worker->thread, NULL, worker_run, worker)
                                       : ENOMEM;
        worker->started = error == 0;
        snprintf(name, sizeof name, "worker-%u", (unsigned)(uint8_t)i);
        if (worker->started)
            pthread_setname_np(worker->thread, name);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error)
        dp_stop(dp);
    return -error;
}

int dp_event_fd(struct dp *dp)
{
    return dp->event;
}

void dp_drain(struct dp *dp)
{
    atomic_store_explicit(&dp->draining, true, memory_order_release);
    wake_workers(dp);
}

static void take_opened(struct dp *dp);

void dp_stop(struct dp *dp)
{
    if (!dp->started || dp->joined)
        return;
    dp_drain(dp);
    atomic_store_explicit(&dp->stopping, true, memory_order_release);
    wake_workers(dp);
    for (uint32_t i = 0; i < dp->worker_count; i++)
        if (dp->workers[i].started)
            pthread_join(dp->workers[i].thread, NULL);
    dp->joined = true;
    /* The workers are gone: their connections are this thread's now. */
    take_opened(dp);
    direct_look(dp);
    for (struct connection *connection = dp->live; connection; connection = connection->live_next)
        if (atomic_load(&connection->phase) == PHASE_DIRECT)
            connection_close(connection, DP_END_LEFT, 0);
        else
            connection_refuse(connection, DP_END_DRAIN_LIMIT, 0);
    for (uint32_t i = 0; i < dp->worker_count; i++) {
        connections_hand_over(&dp->workers[i]);
        listener_leave_all(&dp->workers[i]);
    }
}

/* ---- reports ---- */

static void take_opened(struct dp *dp)
{
    struct connection *connection =
        atomic_exchange_explicit(&dp->opened, NULL, memory_order_acquire);

    for (; connection; connection = connection->next_opened) {
        connection->live_previous = NULL;
        connection->live_next = dp->live;
        if (dp->live)
            dp->live->live_previous = connection;
        dp->live = connection;
        dp->live_count++;
    }
}

/* A walk over the live connections that is done in pieces. */
struct dp_walk {
    struct dp *dp; /* NULL: it is gone */
    struct dp_walk *next;
    struct connection *at; /* the next one to be described */
};

static void remove_live(struct dp *dp, struct connection *connection)
{
    for (struct dp_walk *walk = dp->walks; walk; walk = walk->next)
        if (walk->at == connection)
            walk->at = connection->live_next;
    if (connection->live_previous)
        connection->live_previous->live_next = connection->live_next;
    else
        dp->live = connection->live_next;
    if (connection->live_next)
        connection->live_next->live_previous = connection->live_previous;
    dp->live_count--;
}

/* Moves both inboxes to the control thread's own lists. The closed ones first: whoever is among
 * them was announced as opened before, so the second exchange cannot miss it. */
static void take_inboxes(struct dp *dp)
{
    struct connection *closed = atomic_exchange_explicit(&dp->closed, NULL, memory_order_acquire);
    struct connection *newest = closed, *in_order = NULL;

    take_opened(dp);
    while (closed) { /* the inbox is a stack: newest first */
        struct connection *next = closed->next_closed;

        remove_live(dp, closed);
        closed->next_closed = in_order;
        in_order = closed;
        closed = next;
    }
    if (!newest)
        return;
    *dp->to_report_tail = in_order;
    dp->to_report_tail = &newest->next_closed;
}

static struct connection *next_report(struct dp *dp)
{
    struct connection *connection = dp->to_report;

    if (!connection)
        return NULL;
    dp->to_report = connection->next_closed;
    if (!dp->to_report)
        dp->to_report_tail = &dp->to_report;
    return connection;
}

static void count_dropped(struct dp_dropped *dropped, const struct connection *connection)
{
    const struct dp_listener *listener = &connection->listener->settings;

    dropped->connections[listener->direction][listener->transport][connection->action]++;
    dropped->ends[connection->end]++;
}

void reports_drop(struct dp *dp)
{
    struct connection *connection;

    if (pthread_mutex_trylock(&dp->reports) != 0)
        return; /* somebody takes or drops them just now */
    take_inboxes(dp);
    while (atomic_load_explicit(&dp->unreported, memory_order_relaxed) > MAX_UNREPORTED &&
           (connection = next_report(dp))) {
        count_dropped(&dp->dropped, connection);
        connection_free(connection);
        atomic_fetch_sub_explicit(&dp->unreported, 1, memory_order_relaxed);
    }
    pthread_mutex_unlock(&dp->reports);
}

void dp_take_dropped(struct dp *dp, struct dp_dropped *dropped)
{
    pthread_mutex_lock(&dp->reports);
    *dropped = dp->dropped;
    memset(&dp->dropped, 0, sizeof dp->dropped);
    pthread_mutex_unlock(&dp->reports);
}

size_t dp_take_closed(struct dp *dp, struct dp_record *records, size_t max)
{
    struct connection *connection;
    uint64_t count;
    size_t taken = 0;

    if (read(dp->event, &count, sizeof count) < 0)
        count = 0; /* nobody announced anything: look all the same */
    keeper_collect(&dp->registry.keeper);
    pthread_mutex_lock(&dp->reports);
    take_inboxes(dp);
    for (; taken < max && (connection = next_report(dp)); taken++) {
        connection_describe(connection, 0, &records[taken]);
        connection_free(connection);
    }
    atomic_fetch_sub_explicit(&dp->unreported, taken, memory_order_relaxed);
    pthread_mutex_unlock(&dp->reports);
    return taken;
}

size_t dp_snapshot(struct dp *dp, struct dp_record *records, size_t max)
{
    uint64_t now = clock_ns(CLOCK_MONOTONIC);
    size_t stored = 0, count;

    pthread_mutex_lock(&dp->reports);
    take_inboxes(dp);
    if (max > 0)
        direct_look(dp);
    for (struct connection *connection = dp->live; connection && stored < max;
         connection = connection->live_next)
        connection_describe(connection, now, &records[stored++]);
    count = dp->live_count;
    pthread_mutex_unlock(&dp->reports);
    return count;
}

/* They have nothing to walk over any more. */
static void leave_walks(struct dp *dp)
{
    for (struct dp_walk *walk = dp->walks; walk; walk = walk->next)
        walk->dp = NULL;
}

struct dp_walk *dp_walk_begin(struct dp *dp)
{
    struct dp_walk *walk = calloc(1, sizeof *walk);

    if (!walk)
        return NULL;
    walk->dp = dp;
    pthread_mutex_lock(&dp->reports);
    take_inboxes(dp);
    direct_look(dp);
    walk->at = dp->live;
    walk->next = dp->walks;
    dp->walks = walk;
    pthread_mutex_unlock(&dp->reports);
    return walk;
}

size_t dp_walk_next(struct dp_walk *walk, struct dp_record *records, size_t max)
{
    struct dp *dp = walk->dp;
    uint64_t now = clock_ns(CLOCK_MONOTONIC);
    size_t stored = 0;

    if (!dp)
        return 0;
    pthread_mutex_lock(&dp->reports);
    take_inboxes(dp);
    for (; walk->at && stored < max; walk->at = walk->at->live_next)
        connection_describe(walk->at, now, &records[stored++]);
    pthread_mutex_unlock(&dp->reports);
    return stored;
}

void dp_walk_end(struct dp_walk *walk)
{
    struct dp *dp = walk->dp;

    if (dp) {
        struct dp_walk **link = &dp->walks;

        pthread_mutex_lock(&dp->reports);
        while (*link != walk)
            link = &(*link)->next;
        *link = walk->next;
        pthread_mutex_unlock(&dp->reports);
    }
    free(walk);
}

size_t dp_passing(struct dp *dp)
{
    size_t count;

    pthread_mutex_lock(&dp->reports);
    take_inboxes(dp);
    count = dp->live_count - direct_count(dp);
    pthread_mutex_unlock(&dp->reports);
    return count;
}

size_t dp_ejected(struct dp *dp, struct dp_ejected *ejected, size_t max)
{
    uint64_t since_ms = ejected_since(dp, clock_ns(CLOCK_MONOTONIC) / 1000000u);
    size_t count = 0;

    for (uint32_t direction = 0; direction < DIRECTIONS; direction++) {
        const struct table *table = dp->tables[direction];

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

void dp_read_counters(struct dp *dp, struct dp_counters *sum)
{
    memset(sum, 0, sizeof *sum);
    for (uint32_t i = 0; i < dp->worker_count; i++) {
        const struct counters *counters = &dp->workers[i].counters;

        sum->accepted += atomic_load_explicit(&counters->accepted, memory_order_relaxed);
        sum->closed += atomic_load_explicit(&counters->closed, memory_order_relaxed);
        sum->bytes_sent += atomic_load_explicit(&counters->bytes[DOWNSTREAM], memory_order_relaxed);
        sum->bytes_received +=
            atomic_load_explicit(&counters->bytes[UPSTREAM], memory_order_relaxed);
        sum->bytes_spliced += atomic_load_explicit(&counters->bytes_spliced, memory_order_relaxed);
        sum->connect_failures +=
            atomic_load_explicit(&counters->connect_failures, memory_order_relaxed);
        sum->accept_pauses += atomic_load_explicit(&counters->accept_pauses, memory_order_relaxed);
        sum->buffers += atomic_load_explicit(&counters->buffers, memory_order_relaxed);
    }
    sum->connection_bytes = sizeof(struct connection);
    sum->fds_used = (uint64_t)fds_used(dp);
    sum->fds_budget = (uint64_t)dp->fds_budget;
    sum->fds_limit = (uint64_t)dp->fds_limit;
    sum->full = atomic_load_explicit(&dp->full, memory_order_relaxed);
}
