#include "l4/direct.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/owner.h"
#include "base/sockaddr.h"
#include "base/stack.h"
#include "intercept/control.h"
#include "net/diag.h"
#include "net/foreign.h"
#include "upstream/routes.h"

enum {
    FIRST_SLOTS = 64,
    UNSUBSCRIBE_AFTER_MS = 1000, /* without a direct connection */
    CONNECT_SOON_MS = 2000,      /* within this, the application has connected after its answer */
    CLOCK_SLACK_MS = 1000,
};

/* session->served. */
struct direct_session {
    struct session *session;
    uint64_t cookie; /* the SO_COOKIE of the application's socket */
    struct cluster *cluster;
    struct endpoint *endpoint;
    bool present, counted;          /* present: it was just seen; counted: its bytes are final */
    _Atomic uint64_t seen_bytes[2]; /* as session->bytes, which has the final ones */
    struct mosnhook_address seen_source; /* the control thread's */
};

/* Direct sessions by their sockets' cookies: open addressing, at most half full. */
struct cookies {
    struct direct_session **slots;
    size_t count, capacity;
};

struct direct {
    struct worker *worker, *workers;
    uint32_t worker_count;
    struct watch freed; /* netlink: sockets that the kernel frees; -1 when not listening */
    struct cookies cookies;
    bool events_lost;                /* of `freed` */
    uint64_t until_ms;               /* when the last direct connection ended */
    _Atomic(struct reused *) reused; /* sockets that other workers were asked about */
};

/* ---- by cookie ---- */

static size_t slot_of(const struct cookies *cookies, uint64_t cookie)
{
    return (cookie * 0x9e3779b97f4a7c15u >> 32) & (cookies->capacity - 1);
}

static struct direct_session *cookies_find(const struct cookies *cookies, uint64_t cookie)
{
    if (cookies->count == 0)
        return NULL;
    for (size_t at = slot_of(cookies, cookie); cookies->slots[at];
         at = (at + 1) & (cookies->capacity - 1))
        if (cookies->slots[at]->cookie == cookie)
            return cookies->slots[at];
    return NULL;
}

static void cookies_place(struct cookies *cookies, struct direct_session *known)
{
    size_t at = slot_of(cookies, known->cookie);

    while (cookies->slots[at])
        at = (at + 1) & (cookies->capacity - 1);
    cookies->slots[at] = known;
}

/* False when out of memory. */
static bool cookies_add(struct cookies *cookies, struct direct_session *known)
{
    if (2 * (cookies->count + 1) > cookies->capacity) {
        struct cookies larger = {
            .capacity = cookies->capacity ? 2 * cookies->capacity : FIRST_SLOTS,
            .count = cookies->count,
        };

        larger.slots = calloc(larger.capacity, sizeof *larger.slots);
        if (!larger.slots)
            return false;
        for (size_t i = 0; i < cookies->capacity; i++)
            if (cookies->slots[i])
                cookies_place(&larger, cookies->slots[i]);
        free(cookies->slots);
        *cookies = larger;
    }
    cookies_place(cookies, known);
    cookies->count++;
    return true;
}

static void cookies_remove(struct cookies *cookies, const struct direct_session *known)
{
    size_t mask = cookies->capacity - 1, hole = slot_of(cookies, known->cookie);

    while (cookies->slots[hole] != known)
        hole = (hole + 1) & mask;
    cookies->count--;
    /* Entries behind the hole that could no longer be found move up. */
    for (size_t at = (hole + 1) & mask; cookies->slots[at]; at = (at + 1) & mask) {
        size_t wanted = slot_of(cookies, cookies->slots[at]->cookie);

        if (((at - wanted) & mask) >= ((at - hole) & mask)) {
            cookies->slots[hole] = cookies->slots[at];
            hole = at;
        }
    }
    cookies->slots[hole] = NULL;
}

/* ---- what the kernel says of one ---- */

/* Called by the session's worker, and by the control thread. */
static void note_seen(struct direct_session *known, const struct diag_socket *socket)
{
    atomic_store_explicit(&known->seen_bytes[DOWNSTREAM], socket->bytes_sent, memory_order_relaxed);
    atomic_store_explicit(&known->seen_bytes[UPSTREAM], socket->bytes_received,
                          memory_order_relaxed);
    atomic_store_explicit(&known->session->rtt_us, socket->rtt_us, memory_order_relaxed);
}

static uint64_t opened_ms(const struct session *session)
{
    return session->opened_ns / NS_PER_MS;
}

/* Negative in the turn of the loop that opened it. */
static int64_t age_ms(const struct session *session)
{
    return (int64_t)session->worker->loop.now_ms - (int64_t)opened_ms(session);
}

/* A disconnected socket (by SO_LINGER 0, or connect to AF_UNSPEC) has forgotten its bytes, but not
 * when the last acknowledgement came. One that never got one names a time before it was made. */
static bool was_established(const struct session *session, const struct diag_socket *socket)
{
    return socket->bytes_acked > 0 || socket->last_ack_ms <= age_ms(session) + CLOCK_SLACK_MS;
}

/* Whether the endpoint is at fault for a socket that was never established:
 *
 *   no SYN was sent                       no route, no port, or never connected: not the endpoint
 *   the endpoint answered                 it refused
 *   the kernel has disconnected it        a connect() that waited, and failed
 *   the application closed it, unheard    the endpoint's doing if it had the time that we take
 *
 * An application that disconnects the socket itself is taken for the third. */
static bool is_endpoints_doing(const struct session *session, const struct diag_socket *socket)
{
    if (socket->unacked == 0)
        return false;
    return socket->segments_received > 0 || socket->segments_sent == 0 ||
           age_ms(session) >= timeout_of(&session->worker->timeouts->connect_ms);
}

/* Whether the kernel has counted the peer's FIN as a byte received: it does if the FIN came before
 * the socket was freed. For a socket whose own FIN was acknowledged:
 *
 *   the peer closed first (LAST_ACK)                     counted, nothing is left of the socket
 *   the FIN came, and the application did not read it    counted, and unread
 *   shut down by the application, then by the peer       counted, TIME_WAIT is left
 *   closed by the application, then by the peer          not counted, FIN_WAIT2 is left
 *
 * If the peer's FIN comes between the event and our query, the last is taken for the one before.
 */
static bool counts_fin(const struct diag_socket *socket)
{
    return socket->unread > 0 || diag_state_left(socket) != DIAG_FIN_WAIT2;
}

static void count_bytes(struct direct_session *known, uint64_t sent, uint64_t received)
{
    struct session *session = known->session;
    struct counters *counters = &session->worker->counters;

    known->counted = true;
    atomic_store_explicit(&session->bytes[DOWNSTREAM], sent, memory_order_relaxed);
    atomic_store_explicit(&session->bytes[UPSTREAM], received, memory_order_relaxed);
    counter_add(&counters->bytes[DOWNSTREAM], (int64_t)sent);
    counter_add(&counters->bytes[UPSTREAM], (int64_t)received);
}

static void end_unestablished(struct direct_session *known, const struct diag_socket *socket)
{
    struct session *session = known->session;
    struct worker *worker = session->worker;

    counter_add(&worker->counters.connect_failures, 1);
    if (is_endpoints_doing(session, socket))
        endpoint_failed(known->endpoint, worker->loop.now_ms);
    session_close(session, DP_END_UPSTREAM_CONNECT, 0);
}

static void end_direct(struct direct_session *known, const struct diag_socket *socket)
{
    struct session *session = known->session;
    bool fin_acked = socket->bytes_acked == socket->bytes_sent + 2; /* besides, the SYN */
    enum dp_end end = DP_END_UPSTREAM_RESET;

    session->origin.source = socket->source;
    if (!was_established(session, socket)) {
        end_unestablished(known, socket);
        return;
    }
    endpoint_succeeded(known->endpoint, opened_ms(session));
    if (fin_acked)
        end = DP_END_EOF;
    else if (socket->bytes_acked == 0 || socket->unread > 0)
        end = DP_END_DOWNSTREAM_RESET;
    if (socket->bytes_acked > 0) {
        uint64_t fin = fin_acked && socket->bytes_received > 0 && counts_fin(socket);

        note_seen(known, socket);
        count_bytes(known, socket->bytes_sent, socket->bytes_received - fin);
    }
    session_close(session, end, 0);
}

static void socket_freed(void *argument, const struct diag_socket *socket)
{
    struct direct *direct = argument;
    struct direct_session *known = cookies_find(&direct->cookies, socket->cookie);

    if (known)
        end_direct(known, socket);
}

/* ---- listening ---- */

static void freed_ready(struct watch *watch, uint32_t events);
static void look_again(struct timer *timer);

static void unsubscribe(struct direct *direct)
{
    loop_close_watch(&direct->worker->loop, &direct->freed);
}

static int subscribe(struct direct *direct)
{
    int result;

    if (direct->freed.fd >= 0)
        return 0;
    result = diag_subscribe();
    if (result < 0)
        return result;
    direct->freed.fd = result;
    direct->freed.ready = freed_ready;
    result = loop_watch(&direct->worker->loop, &direct->freed, EPOLLIN);
    if (result < 0)
        unsubscribe(direct);
    return result;
}

static void mark_present(void *argument, const struct diag_socket *socket)
{
    struct direct *direct = argument;
    struct direct_session *known = cookies_find(&direct->cookies, socket->cookie);

    if (!known)
        return;
    known->present = true;
    note_seen(known, socket);
    if (was_established(known->session, socket))
        endpoint_succeeded(known->endpoint, opened_ms(known->session));
}

/* Events were lost: closes sessions whose socket is gone as unobserved. */
static void look_for_all(struct direct *direct)
{
    struct cookies *cookies = &direct->cookies;
    struct loop *loop = &direct->worker->loop;

    for (size_t i = 0; i < cookies->capacity; i++)
        if (cookies->slots[i])
            cookies->slots[i]->present = false;
    if (diag_visit_live(mark_present, direct) < 0)
        return;
    for (size_t i = 0; i < cookies->capacity;) {
        struct direct_session *known = cookies->slots[i];
        uint64_t connected_by_ms = known ? opened_ms(known->session) + CONNECT_SOON_MS : 0;

        if (known && !known->present && connected_by_ms > loop->now_ms) {
            loop_set_timer(loop, &known->session->timer, connected_by_ms - loop->now_ms,
                           look_again);
        } else if (known && !known->present) {
            session_close(known->session, DP_END_UNOBSERVED, 0);
            continue; /* another one may have moved up */
        }
        i++;
    }
}

/* A socket that did not exist yet may exist by now. */
static void look_again(struct timer *timer)
{
    look_for_all(OWNER(timer, struct session, timer)->worker->direct);
}

static void freed_ready(struct watch *watch, uint32_t events)
{
    struct direct *direct = OWNER(watch, struct direct, freed);
    bool all = diag_read_events(watch->fd, socket_freed, direct, &direct->events_lost);

    (void)events;
    if (all && direct->events_lost) {
        direct->events_lost = false;
        look_for_all(direct);
    }
    if (direct->cookies.count == 0 &&
        direct->worker->loop.now_ms - direct->until_ms > UNSUBSCRIBE_AFTER_MS)
        unsubscribe(direct);
}

/* ---- being asked ---- */

static int read_option(int fd, int level, int name)
{
    int value = 0;
    socklen_t length = sizeof value;

    return getsockopt(fd, level, name, &value, &length) < 0 ? -1 : value;
}

/* Whether the application's socket can connect there, from the address that it may be bound to. */
static bool can_reach(int application, const struct mosnhook_address *source,
                      const struct mosnhook_address *endpoint)
{
    bool ipv4 = address_is_ipv4(endpoint);

    if (read_option(application, SOL_SOCKET, SO_DOMAIN) == AF_INET) {
        if (!ipv4)
            return false;
    } else if (ipv4 && read_option(application, IPPROTO_IPV6, IPV6_V6ONLY) != 0) {
        return false;
    }
    if (address_is_unspecified(source))
        return true;
    return address_is_ipv4(source) == ipv4 &&
           (!address_is_loopback(source) || address_is_loopback(endpoint));
}

/* Picks an endpoint that the application can connect to. False where only a relay will do. */
static bool choose_reachable(struct session *session, int application, struct choice *choice)
{
    struct worker *worker = session->worker;
    uint64_t since_ms = ejected_since(worker->timeouts, worker->loop.now_ms);
    bool relayable = false; /* an endpoint is not ejected, but only a relay reaches it */

    if (!foreign_namespace_is_known(worker->foreign) || /* see direct_works */
        read_option(application, SOL_SOCKET, SO_PROTOCOL) != IPPROTO_TCP ||
        address_of_local(application, &session->origin.source) < 0 || subscribe(worker->direct) < 0)
        return false;
    while (choice_next(choice, worker, &session->origin)) {
        bool ejected = choice->endpoint && endpoint_is_ejected(choice->endpoint, since_ms);

        if (can_reach(application, &session->origin.source, &choice->upstream))
            return !(ejected && relayable);
        relayable |= !ejected;
    }
    return false;
}

/* False if the caller no longer waits. */
static bool send_answer(const struct request *request, enum mosnhook_action action,
                        const struct mosnhook_address *endpoint)
{
    struct mosnhook_answer answer = {
        .magic = MOSNHOOK_MAGIC, .version = MOSNHOOK_VERSION, .action = (uint16_t)action};

    if (action == MOSNHOOK_REFUSE)
        answer.error = ECONNREFUSED;
    if (endpoint)
        answer.endpoint = *endpoint;
    return control_answer(request, &answer);
}

/* The application asks about a socket again: its earlier connect failed, or was undone. Ends the
 * earlier session. */
static void end_earlier(struct direct *direct, const struct diag_socket *socket)
{
    struct direct_session *before = cookies_find(&direct->cookies, socket->cookie);

    if (before && was_established(before->session, socket))
        session_close(before->session, DP_END_UNOBSERVED, 0);
    else if (before)
        end_unestablished(before, socket);
}

/* A socket whose earlier connection may be another worker's. */
struct reused {
    struct reused *next;
    struct diag_socket socket;
};

static void end_earlier_elsewhere(struct direct *direct, const struct diag_socket *socket)
{
    for (uint32_t i = 0; i < direct->worker_count; i++) {
        struct worker *other = &direct->workers[i];
        struct reused *reused = other == direct->worker ? NULL : malloc(sizeof *reused), *was;

        if (!reused)
            continue;
        reused->socket = *socket;
        STACK_PUSH_CHAIN(&other->direct->reused, reused, reused, next, &was);
        worker_wake(other);
    }
}

void direct_take_reused(struct worker *worker)
{
    struct reused *reused = STACK_TAKE(&worker->direct->reused);

    while (reused) {
        struct reused *next = reused->next;

        end_earlier(worker->direct, &reused->socket);
        free(reused);
        reused = next;
    }
}

/* Puts the session back to where it asked, and gives up the choice. */
static void await_request(struct session *session, struct choice *choice)
{
    /* Both requests are one connection, which takes one turn. */
    trace(session->worker, session->id, not_direct, 0, 0);
    choice_give_back(choice);
    choice_release(choice);
    memset(&session->origin.source, 0, sizeof session->origin.source);
    control_await_request(session);
}

static void refuse_question(struct session *session, struct choice *choice, enum dp_end end)
{
    if (!send_answer(session->intercepted, MOSNHOOK_REFUSE, NULL)) {
        await_request(session, choice);
        return;
    }
    trace(session->worker, session->id, refused, end, ECONNREFUSED);
    choice_release(choice);
    session_enter(session, SESSION_CONNECTING);
    session_close(session, end, ECONNREFUSED);
}

static void direct_close(struct session *session, bool reset);

/* It is never completed. */
static const struct serving direct_serving = {.close = direct_close};

/* Ends earlier sessions of the socket and remembers its cookie. False when out of memory. */
static bool remember(struct direct_session *known, int application)
{
    struct direct *direct = known->session->worker->direct;
    struct diag_socket before;
    socklen_t length = sizeof known->cookie;

    if (getsockopt(application, SOL_SOCKET, SO_COOKIE, &known->cookie, &length) < 0)
        return false;
    /* What other workers were asked before is about our earlier session, not about this one. */
    direct_take_reused(known->session->worker);
    diag_of_fd(application, &before);
    before.cookie = known->cookie;
    end_earlier(direct, &before);
    if (known->session->origin.source.port != 0) /* it was bound, or connected before */
        end_earlier_elsewhere(direct, &before);
    return cookies_add(&direct->cookies, known);
}

/* Lets the application connect itself. False if it has to be relayed. */
static bool leave_to_application(struct session *session, const struct choice *choice)
{
    struct worker *worker = session->worker;
    struct request *request = session->intercepted;
    struct direct_session *known = calloc(1, sizeof *known);

    if (known)
        known->session = session;
    if (!known || !remember(known, request->application)) {
        free(known);
        return false;
    }
    if (worker->page)
        __atomic_store_n(&worker->page->elsewhere, 1, __ATOMIC_RELAXED);
    control_let_go(request); /* before the answer */
    if (!send_answer(request, MOSNHOOK_DIRECT, choice->endpoint ? &choice->upstream : NULL)) {
        cookies_remove(&worker->direct->cookies, known);
        free(known);
        return false;
    }
    trace_address(worker, session->id, direct,
                  choice->endpoint ? &choice->upstream : &session->origin.original_destination);
    known->cluster = choice->cluster;
    known->endpoint = choice->endpoint;
    session->served = known;
    session->serving = &direct_serving;
    session->upstream = choice->upstream;
    worker->handler->decided(session, DP_DIRECT);
    atomic_store_explicit(&session->path, DP_PATH_DIRECT, memory_order_relaxed);
    session_enter(session, SESSION_DIRECT);
    control_end(session);
    session_release_fds(session, 0);
    return true;
}

void direct_ask(struct session *session)
{
    struct request *request = session->intercepted;
    struct choice choice;
    enum dp_end refused = choice_begin(&choice, session->worker, &session->origin);

    session->route = choice.route;
    trace(session->worker, session->id, routed, choice.route, choice.action);
    if (refused != DP_END_NONE) {
        session->worker->handler->decided(session, refused == DP_END_REFUSED_BY_ROUTE ? DP_REFUSE
                                                                                      : DP_RELAY);
        refuse_question(session, &choice, refused);
        return;
    }
    if (choice.action == DP_DIRECT && choose_reachable(session, request->application, &choice) &&
        leave_to_application(session, &choice))
        return;
    await_request(session, &choice);
    /* Whether the answer arrives or not, the request comes. */
    (void)send_answer(request, MOSNHOOK_RELAY, NULL);
}

static void direct_close(struct session *session, bool reset)
{
    struct direct_session *known = session->served;
    struct direct *direct = session->worker->direct;
    struct choice choice = {.cluster = known->cluster, .endpoint = known->endpoint};

    (void)reset;
    cookies_remove(&direct->cookies, known);
    direct->until_ms = session->worker->loop.now_ms;
    if (!known->counted)
        count_bytes(known, counter_read(&known->seen_bytes[DOWNSTREAM]),
                    counter_read(&known->seen_bytes[UPSTREAM]));
    choice_release(&choice);
}

/* ---- a worker's part ---- */

struct direct *direct_create(struct worker *worker, struct worker *workers, uint32_t worker_count)
{
    struct direct *direct = calloc(1, sizeof *direct);

    if (!direct)
        return NULL;
    direct->worker = worker;
    direct->workers = workers;
    direct->worker_count = worker_count;
    direct->freed.fd = -1;
    return direct;
}

void direct_destroy(struct worker *worker)
{
    struct direct *direct = worker->direct;

    if (!direct)
        return;
    direct_take_reused(worker);
    assert(direct->cookies.count == 0);
    unsubscribe(direct);
    free(direct->cookies.slots);
    free(direct);
}

/* ---- the control thread's look at the live ones ---- */

static void look_at(void *argument, const struct diag_socket *socket)
{
    struct direct_session *known = cookies_find(argument, socket->cookie);

    if (!known)
        return;
    note_seen(known, socket);
    known->seen_source = socket->source;
}

static bool is_direct(const struct session *session)
{
    return atomic_load_explicit(&session->state, memory_order_acquire) == SESSION_DIRECT;
}

void direct_look(struct session *first)
{
    struct cookies live = {.count = 0};
    bool complete = true;

    for (struct session *session = first; session; session = session->live_next)
        if (is_direct(session))
            complete = cookies_add(&live, session->served) && complete;
    if (complete && live.count > 0)
        (void)diag_visit_live(look_at, &live);
    free(live.slots);
}

void direct_last_seen(const struct session *session, struct mosnhook_address *source,
                      uint64_t *sent, uint64_t *received)
{
    const struct direct_session *known = session->served;

    *source = known->seen_source;
    *sent = counter_read(&known->seen_bytes[DOWNSTREAM]);
    *received = counter_read(&known->seen_bytes[UPSTREAM]);
}

int direct_works(void)
{
    uint64_t namespace;
    socklen_t length = sizeof namespace;
    int result = 0, fd = diag_subscribe();

    if (fd < 0)
        return fd;
    if (getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &namespace, &length) < 0)
        result = -errno;
    close(fd);
    return result;
}
