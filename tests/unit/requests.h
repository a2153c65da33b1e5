/* A worker that serves requests of one service, between sockets that the test has. */
#ifndef UNIT_REQUESTS_H
#define UNIT_REQUESTS_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "intercept/clients.h"
#include "intercept/listener.h"
#include "l4/accelerator.h"
#include "l7/downstream.h"
#include "l7/message.h"
#include "l7/streams.h"
#include "net/pipe.h"
#include "net/socket.h"
#include "routed.h"
#include "rules.h"
#include "services.h"

/* Turns of the loop, of a microsecond or more: peers may wait for the kernel (delayed ACKs). */
enum { PATIENCE = 2000000 };

enum { FDS = 2, MOST_UPSTREAMS = 16, UPSTREAM_BYTES = 1 << 18 };

/* An accepted connection of the upstream, and what came on it and is not answered. */
struct upstream_peer {
    int fd; /* -1: closed */
    size_t size;
    char data[UPSTREAM_BYTES];
};

struct serving_worker {
    struct routed_worker routed;
    struct pipes pipes;
    struct clients clients;
    struct listeners listeners;
    struct listener listener;
    struct accelerator accelerator;
    struct directories directories;
    struct router router;
    struct written written;
    struct limits limits;
    enum dp_protocol protocol;
    int accepting[MOST_UPSTREAMS]; /* by endpoint */
    int endpoint_count;
    struct upstream_peer peers[MOST_UPSTREAMS];
    int peer_count;
    unsigned sessions, closed, requests, copies; /* opened, reported */
    uint32_t flags;                              /* of all requests */
};

static struct serving_worker serving;
static struct worker *const worker = &serving.routed.worker;

/* ---- what api/ does otherwise ---- */

static void session_opened(struct session *session)
{
    (void)session;
    serving.sessions++;
}

static void session_decided(struct session *session, enum dp_action action)
{
    (void)session;
    (void)action;
}

static void session_closed(struct session *session)
{
    (void)session;
    serving.closed++;
}

static void session_has_arrived(struct session *session)
{
    struct choice choice = {.route = MOSNHOOK_NO_RULE};

    downstream_start(session, &choice, serving.protocol, 1000, DP_RELAY);
}

static void request_has_ended(struct session *session, const struct dp_request *request,
                              struct standing *standing, struct endpoint *endpoint)
{
    (void)session;
    (void)standing;
    (void)endpoint;
    serving.requests++;
    serving.flags |= request->flags;
}

static void copy_has_ended(struct worker *worker, const struct dp_request *request,
                           struct standing *standing, struct endpoint *endpoint)
{
    (void)worker;
    (void)request;
    (void)standing;
    (void)endpoint;
    serving.copies++;
}

static const struct flow_ops *no_flow_ops(struct tunnel *tunnel)
{
    (void)tunnel;
    return NULL;
}

static const struct session_handler serving_handler = {
    .opened = session_opened,
    .decided = session_decided,
    .closed = session_closed,
    .arrived = session_has_arrived,
    .request_ended = request_has_ended,
    .copy_ended = copy_has_ended,
    .flow_ops = no_flow_ops,
};

/* As api/ does at the end of a turn, before streams. */
static void free_closed(struct task *task)
{
    (void)task;
    while (worker->closed) {
        struct session *next = worker->closed->next_closed;

        session_free(worker->closed);
        worker->closed = next;
    }
}

static struct task turn_ends = {.run = free_closed};

/* ---- life ---- */

static inline void serving_offer(void)
{
    struct directory *directory = directory_create(&serving.directories, &serving.written.table);

    assert_non_null(directory);
    router_offer(&serving.router, directory);
    directories_set(&serving.directories, directory);
}

/* With a service of so many endpoints, each of which listens. */
static inline struct dp_service *serving_begin(enum dp_protocol protocol, int endpoints)
{
    struct mosnhook_address address;
    struct dp_service *service;

    memset(&serving, 0, sizeof serving);
    routed_open(&serving.routed);
    serving.protocol = protocol;
    serving.limits = (struct limits){
        .line_bytes = 8192, .head_bytes = 65536, .fields = 100, .frame_bytes = 1 << 20};
    serving.listener.settings.transport = DP_TRANSPORT_LISTENER;
    directories_init(&serving.directories, &serving.routed.routes.registry, 1);
    worker->router = &serving.router;
    worker->pipes = &serving.pipes;
    worker->clients = &serving.clients;
    worker->listeners = &serving.listeners;
    worker->accelerator = &serving.accelerator;
    worker->handler = &serving_handler;
    serving.listeners.workers = worker;
    serving.listeners.worker_count = 1;
    worker->mail.fd = -1;
    written_begin(&serving.written);
    service = written_service(&serving.written, "service", protocol);
    for (int i = 0; i < endpoints; i++) {
        serving.accepting[i] = listen_on_loopback(&address);
        written_endpoint(&serving.written, &address);
    }
    serving.endpoint_count = endpoints;
    serving.written.entrances[serving.written.table.entrance_count++] =
        (struct dp_entrance){.protocol = protocol};
    assert_true(streams_open(worker, &serving.limits));
    turn_ends.next = NULL;
    loop_add_each_turn(&worker->loop, &turn_ends);
    return service;
}

/* Its service does all that it can against failures, with a mirror. */
static inline void serving_be_resilient(enum dp_protocol protocol)
{
    struct mosnhook_address address;

    written_service(&serving.written, "shadow", protocol)->timeout_ms = 200;
    serving.accepting[serving.endpoint_count++] = listen_on_loopback(&address);
    written_endpoint(&serving.written, &address);
    serving.written.services[0].resilience = 1;
    serving.written.resiliences[0] = (struct dp_resilience){
        .retries = 10,
        .retry_on = (1u << DP_RETRIES) - 1,
        .attempt_ms = 1000,
        .budget = DP_SHARES,
        .least_retries = 100,
        .requests = 100,
        .rate_requests = 1000000,
        .rate_ms = 1,
        .rate_burst = 1000000,
        .mirror_share = DP_SHARES,
        .mirror = 1,
    };
    serving.written.table.resilience_count = serving.written.table.handling_count = 1;
    serving.written.handlings[0] = (struct dp_handling){
        .delay_ms = 1, .delay_share = DP_SHARES / 2, .hedge_ms = 1, .idempotent = 1};
    written_rule(&serving.written, protocol_family(protocol))->handling = 1;
    written_target(&serving.written, 0, 1);
    serving.written.entrances[0].service = DP_NO_SERVICE;
}

static inline struct standing *the_standing(void)
{
    return serving.directories.standings.first;
}

static inline void assert_nothing_is_counted(void)
{
    for (struct standing *standing = the_standing(); standing; standing = standing->next) {
        assert_int_equal(counter_read(&standing->tallies[0].active), 0);
        assert_int_equal(counter_read(&standing->tallies[0].pending), 0);
        assert_int_equal(counter_read(&standing->tallies[0].connections), 0);
        assert_int_equal(atomic_load(&standing->connections), 0);
        assert_int_equal(atomic_load(&standing->pending), 0);
    }
}

static inline void close_peers(void)
{
    for (int i = 0; i < serving.peer_count; i++)
        if (serving.peers[i].fd >= 0)
            close(serving.peers[i].fd);
    serving.peer_count = 0;
}

/* Nothing may be left: the assertions of what it closes say so. */
static inline void serving_end(void)
{
    free_closed(&turn_ends);
    assert_int_equal(serving.closed, serving.sessions);
    streams_close(worker);
    assert_nothing_is_counted();
    pipes_close(worker);
    router_close(&serving.router);
    directories_close(&serving.directories);
    close_peers();
    for (int i = 0; i < serving.endpoint_count; i++)
        close(serving.accepting[i]);
    routed_close(&serving.routed);
}

/* ---- clients ---- */

/* The session of a new client, whose socket is stored; NULL where there was no memory. */
static inline struct session *arrive(int *client)
{
    struct session *session;
    int fds[2];

    tcp_pair(fds);
    *client = fds[0];
    assert_true(budget_reserve(&serving.routed.budget, FDS));
    loop_update_clock(&worker->loop);
    session = session_open(worker, &serving.listener, &intercept_connected, FDS);
    if (!session) {
        close(fds[1]);
        return NULL;
    }
    assert_int_equal(socket_tune(fds[1]), 0);
    session->downstream.watch.fd = fds[1];
    session_downstream_waits(session);
    assert_int_equal(channel_watch(&worker->loop, &session->downstream), 0);
    session_arrived(session);
    return session;
}

/* ---- upstreams ---- */

static inline void accept_peers(void)
{
    for (int i = 0; i < serving.endpoint_count; i++) {
        int fd = accept4(serving.accepting[i], NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd < 0)
            continue;
        assert_in_range(serving.peer_count, 0, MOST_UPSTREAMS - 1);
        serving.peers[serving.peer_count].size = 0;
        serving.peers[serving.peer_count++].fd = fd;
    }
}

static inline void read_peer(struct upstream_peer *peer)
{
    ssize_t count = recv(peer->fd, peer->data + peer->size, sizeof peer->data - peer->size, 0);

    if (count > 0) {
        peer->size += (size_t)count;
    } else if (count == 0 || errno != EAGAIN) {
        close(peer->fd);
        peer->fd = -1;
    }
}

static inline void drop_from_peer(struct upstream_peer *peer, size_t size)
{
    peer->size -= size;
    memmove(peer->data, peer->data + size, peer->size);
}

static inline void do_nothing(struct task *task)
{
    (void)task;
}

static struct task no_wait = {.run = do_nothing};

/* A turn that does not wait, then a turn of the upstream. */
static inline void pump(void (*serve)(struct upstream_peer *))
{
    task_schedule(&worker->loop.tasks, &no_wait);
    loop_turn(&worker->loop);
    accept_peers();
    for (int i = 0; i < serving.peer_count; i++)
        if (serving.peers[i].fd >= 0) {
            read_peer(&serving.peers[i]);
            if (serving.peers[i].fd >= 0 && serve)
                serve(&serving.peers[i]);
        }
}

#endif
