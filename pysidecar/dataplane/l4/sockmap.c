#include "l4/sockmap.h"

#include <assert.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/owner.h"
#include "base/sockaddr.h"
#include "l4/accelerator.h"

enum {
    /* What may wait on TCP's way from the application (unsent in its socket, and in our receive
     * buffer): little, so that a blast that had to take TCP can leave it soon. */
    UNSENT_MAX = 1,
    RECEIVE_BUFFER = 64 * 1024,

    /* How often to poll a receiver that is behind: seldom enough to take at most a twentieth of the
     * worker's time. And for how long, without and with progress. */
    POLL_NS = 200 * 1000,
    POLL_SHARE = 20,
    STALL_MS = 5,
    POLLED_MS = 20,
    RETRY_MS = 10,      /* of a receiver that stalled, and gets bytes by TCP */
    TRIES = 8,          /* to attach a tunnel, at doubling distances */
    TICK_BUSY_MS = 250, /* how old byte counts may be */
    TICK_IDLE_MS = 1000,
};

/* Whether a receiver keeps up. While it does not, we wait for it rather than send by TCP, which
 * would have to be empty before anything could be redirected again. */
enum pace {
    PACE_KEEPS_UP,
    PACE_BEHIND,    /* its window is full */
    PACE_SWITCHING, /* from TCP to redirecting: it has to read everything first */
    PACE_STALLED,   /* it takes too long: TCP takes over */
};

struct receiver {
    enum pace pace;
    uint32_t waiting; /* bytes, at the last poll */
    uint64_t since_ms, progress_ms;
};

/* tunnel->extra, from the first attempt to attach on. */
struct sockmapped {
    struct tunnel *tunnel;
    struct record *record; /* NULL if it is not attached */
    unsigned tries;        /* attempts that are left */
    uint64_t again_at_ms;  /* not before this is the next attempt */
    uint64_t counted;      /* of record->redirected[0]: what is in the session's bytes already */
    uint64_t redirected_before; /* record->redirected[1] before the current read */
    int room;                   /* size of the buffer that redirected bytes go to */
    bool joined;                /* what we send to the application may be redirected */
    uint64_t leaves_at_ms;      /* when it may go back to the relay; 0: it stays */
    /* By the side that is sent to. */
    struct receiver receiver[2];
    struct sockmapped *next_polled,
        **previous_polled; /* in the worker's list, while a receiver is waited for */
};

struct sockmap {
    struct worker *worker;
    struct sockmapped *polled; /* tunnels with a receiver that is waited for */
    struct timer poll;
};

static const struct flow_ops attached_ops;

static struct worker *worker_of(const struct sockmapped *sockmapped)
{
    return tunnel_worker(sockmapped->tunnel);
}

static struct accelerator *accelerator_of(const struct sockmapped *sockmapped)
{
    return worker_of(sockmapped)->accelerator;
}

static int fd_of(const struct sockmapped *sockmapped, int side)
{
    return tunnel_side(sockmapped->tunnel, side)->watch.fd;
}

/* ---- attaching ---- */

static bool describe_socket(int fd, struct tuple *tuple)
{
    struct mosnhook_address local, remote;

    if (address_of_local(fd, &local) < 0 || address_of_peer(fd, &remote) < 0)
        return false;
    memset(tuple, 0, sizeof *tuple);
    tuple->is_ipv6 = !address_is_ipv4(&local);
    memcpy(tuple->local_ip, tuple->is_ipv6 ? local.ip : local.ip + 12, tuple->is_ipv6 ? 16 : 4);
    memcpy(tuple->remote_ip, tuple->is_ipv6 ? remote.ip : remote.ip + 12, tuple->is_ipv6 ? 16 : 4);
    tuple->local_port = htons(local.port);
    tuple->remote_port = htons(remote.port);
    return true;
}

/* Redirected data bypasses the application's own socket, so the upstream's has to follow its
 * TCP_NODELAY. */
static void follow_nodelay(const struct sockmapped *mapped)
{
    int nodelay = (int)mapped->record->nodelay;

    setsockopt(fd_of(mapped, UPSTREAM), IPPROTO_TCP, TCP_NODELAY, &nodelay, sizeof nodelay);
}

static void fill_record(const struct sockmapped *mapped)
{
    const struct accelerator *accelerator = accelerator_of(mapped);
    const struct session *session = mapped->tunnel->session;
    struct record *record = mapped->record;

    memset(record, 0, sizeof *record);
    record->local = accelerator->settings.path == DP_PATH_LOCAL;
    record->blocking = accelerator->settings.blocking_sockets;
    record->forwarded = session->header_size + counter_read(&session->bytes[DOWNSTREAM]);
}

/* One of enum answer, or -errno. */
static int attach_sockets(const struct sockmapped *mapped)
{
    const struct accelerator *accelerator = accelerator_of(mapped);
    struct record *record = mapped->record;
    int small = RECEIVE_BUFFER, unbounded = 0, answer;

    fill_record(mapped);
    if (!describe_socket(fd_of(mapped, DOWNSTREAM), &record->downstream) ||
        !describe_socket(fd_of(mapped, UPSTREAM), &record->upstream))
        return ANSWER_NO_SOCKET;
    __atomic_store_n(&record->id, mapped->tunnel->session->id, __ATOMIC_RELEASE);
    answer = accelerator_run(accelerator, accelerator->attach, record);
    if (answer != ANSWER_OK) {
        __atomic_store_n(&record->id, 0, __ATOMIC_RELEASE);
        return answer;
    }
    if (!record->local) {
        setsockopt(fd_of(mapped, DOWNSTREAM), SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
        /* The window bounds what is redirected to it, which must never be refused. */
        setsockopt(fd_of(mapped, UPSTREAM), IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unbounded,
                   sizeof unbounded);
        follow_nodelay(mapped);
    }
    return ANSWER_OK;
}

/* Makes room for redirected bytes. The upstream's socket must hold a full window, however small its
 * messages are: else the application would get EAGAIN, and no event later. In our own socket they
 * take room from what comes by TCP. The kernel does not shrink a buffer that it did not size when
 * memory gets short: so it is no more than this connection's share. */
static void set_window(struct sockmapped *mapped)
{
    struct record *record = mapped->record;
    uint32_t before = record->window, now = accelerator_window(accelerator_of(mapped));
    /* A window that shrinks may be in use for another moment. The kernel doubles the value. */
    int room = (int)(before > now ? before : now) * 2;

    if (room == mapped->room && before == now)
        return;
    mapped->room = room;
    if (record->local)
        setsockopt(fd_of(mapped, DOWNSTREAM), SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    else
        setsockopt(fd_of(mapped, UPSTREAM), SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
    __atomic_store_n(&record->window, now, __ATOMIC_RELEASE);
}

/* Whether messages to the application may be redirected, or all take TCP. */
static void set_joined(struct sockmapped *mapped, bool joined)
{
    const struct accelerator *accelerator = accelerator_of(mapped);

    if (joined == mapped->joined || (joined && mapped->leaves_at_ms))
        return;
    if (joined)
        joined = accelerator_run(accelerator, accelerator->join, mapped->record) == ANSWER_OK;
    else
        accelerator_remove(accelerator, mapped->record, ROLE_DOWNSTREAM);
    mapped->joined = joined;
}

static bool pays(const struct tunnel *tunnel)
{
    const struct dp_acceleration *settings = &tunnel_worker(tunnel)->accelerator->settings;
    const struct session *session = tunnel->session;

    return tunnel->round_trips >= settings->after_round_trips ||
           counter_read(&session->bytes[DOWNSTREAM]) + counter_read(&session->bytes[UPSTREAM]) >=
               settings->after_bytes;
}

/* The tunnel stays a relay. */
static void give_up(struct tunnel *tunnel)
{
    free(tunnel->extra);
    tunnel->extra = NULL;
    tunnel->ops = NULL;
}

static void begin_attached(struct sockmapped *mapped)
{
    struct tunnel *tunnel = mapped->tunnel;
    bool local = mapped->record->local;

    trace(tunnel_worker(tunnel), tunnel->session->id, accelerated,
          local ? DP_PATH_LOCAL : DP_PATH_FULL, mapped->tries);

    tunnel->ops = &attached_ops;
    if (local)
        tunnel->flow[DOWNSTREAM].splicing = tunnel->flow[UPSTREAM].splicing = false;
    set_joined(mapped, !tunnel->flow[UPSTREAM].splicing);
    set_window(mapped); /* from here on there is room to redirect to */
    atomic_store_explicit(&tunnel->session->path, local ? DP_PATH_LOCAL : DP_PATH_FULL,
                          memory_order_relaxed);
    tunnel_tick_in(tunnel, TICK_BUSY_MS);
}

/* Some obstacles pass: the application's end is established later than ours, or its socket still
 * blocks. An ended direction does not. */
static void try_to_attach(struct sockmapped *mapped)
{
    uint64_t now_ms = worker_of(mapped)->loop.now_ms;
    int answer;

    mapped->record = accelerator_take(accelerator_of(mapped), now_ms);
    if (!mapped->record) {
        give_up(mapped->tunnel);
        return;
    }
    answer = attach_sockets(mapped);
    if (answer == ANSWER_OK) {
        begin_attached(mapped);
        return;
    }
    accelerator_give_back(accelerator_of(mapped), mapped->record, now_ms);
    mapped->record = NULL;
    trace(worker_of(mapped), mapped->tunnel->session->id, not_accelerated,
          answer == ANSWER_ENDED ? 0 : mapped->tries - 1, 0);
    if (answer == ANSWER_ENDED || --mapped->tries == 0)
        give_up(mapped->tunnel);
    else
        mapped->again_at_ms = now_ms + (1u << (TRIES - mapped->tries - 1));
}

static void watching_ran(struct tunnel *tunnel)
{
    struct sockmapped *mapped = tunnel->extra;

    if ((mapped && tunnel_worker(tunnel)->loop.now_ms < mapped->again_at_ms) || !pays(tunnel))
        return;
    if (!mapped) {
        mapped = calloc(1, sizeof *mapped);
        if (!mapped) {
            give_up(tunnel);
            return;
        }
        mapped->tunnel = tunnel;
        mapped->tries = TRIES;
        tunnel->extra = mapped;
    }
    try_to_attach(mapped);
}

static void watching_release(struct tunnel *tunnel)
{
    give_up(tunnel);
}

static const struct flow_ops watching_ops = {.ran = watching_ran, .release = watching_release};

const struct flow_ops *sockmap_ops(const struct tunnel *tunnel)
{
    const struct session *session = tunnel->session;
    const struct dp_listener *listener = session->origin.listener;

    /* Only the hook makes up for what a redirected socket does differently (see hook/receive.c). */
    return session->worker->accelerator->object && listener->direction == DP_OUTBOUND &&
                   session->hooked
               ? &watching_ops
               : NULL;
}

void sockmap_prepare(struct session *session, int application)
{
    const struct accelerator *accelerator = session->worker->accelerator;
    int unsent = UNSENT_MAX;

    if (accelerator->object &&
        (accelerator->settings.blocking_sockets || fcntl(application, F_GETFL) & O_NONBLOCK))
        setsockopt(application, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent);
}

/* ---- receivers that do not keep up ---- */

static void poll_expired(struct timer *timer);

static bool is_waited_for(const struct receiver *receiver)
{
    return receiver->pace == PACE_BEHIND || receiver->pace == PACE_SWITCHING;
}

static void add_polled(struct sockmap *sockmap, struct sockmapped *mapped)
{
    struct loop *loop = &sockmap->worker->loop;

    if (!sockmap->polled)
        timer_set(&loop->timers, &sockmap->poll, loop->now_ns + POLL_NS, poll_expired);
    mapped->next_polled = sockmap->polled;
    mapped->previous_polled = &sockmap->polled;
    if (sockmap->polled)
        sockmap->polled->previous_polled = &mapped->next_polled;
    sockmap->polled = mapped;
}

static void remove_polled(struct sockmap *sockmap, struct sockmapped *mapped)
{
    *mapped->previous_polled = mapped->next_polled;
    if (mapped->next_polled)
        mapped->next_polled->previous_polled = mapped->previous_polled;
    mapped->previous_polled = NULL;
    if (!sockmap->polled)
        timer_cancel(&sockmap->worker->loop.timers, &sockmap->poll);
}

static void set_polled(struct sockmapped *mapped, bool polled)
{
    struct sockmap *sockmap = worker_of(mapped)->sockmap;

    if (polled && !mapped->previous_polled)
        add_polled(sockmap, mapped);
    else if (!polled && mapped->previous_polled)
        remove_polled(sockmap, mapped);
}

static void trace_pace(const struct sockmapped *mapped, int to, bool waited)
{
    const struct tunnel *tunnel = mapped->tunnel;

    if (!waited && is_waited_for(&mapped->receiver[to]))
        trace(tunnel_worker(tunnel), tunnel->session->id, held_back, to, 0);
    else if (waited && !is_waited_for(&mapped->receiver[to]))
        trace(tunnel_worker(tunnel), tunnel->session->id, goes_on, to, 0);
}

static void set_pace(struct sockmapped *mapped, int to, enum pace pace)
{
    uint64_t now_ms = worker_of(mapped)->loop.now_ms;
    bool waited = is_waited_for(&mapped->receiver[to]);

    mapped->receiver[to] = (struct receiver){pace, UINT32_MAX, now_ms, now_ms};
    trace_pace(mapped, to, waited);
    if (to == DOWNSTREAM)
        __atomic_store_n(&mapped->record->hold, pace == PACE_STALLED, __ATOMIC_RELEASE);
    set_polled(mapped, is_waited_for(&mapped->receiver[DOWNSTREAM]) ||
                           is_waited_for(&mapped->receiver[UPSTREAM]));
}

/* Bytes that the upstream has not acknowledged. */
static uint32_t unacknowledged(const struct sockmapped *mapped)
{
    int bytes = 0;

    return ioctl(fd_of(mapped, UPSTREAM), SIOCOUTQ, &bytes) < 0 ? 0 : (uint32_t)bytes;
}

static void go_on_with(struct sockmapped *mapped, int to)
{
    if (mapped->receiver[to].pace == PACE_STALLED)
        set_pace(mapped, to, to == DOWNSTREAM ? PACE_SWITCHING : PACE_BEHIND);
}

/* Polls a receiver that is waited for. */
static void poll_receiver(struct sockmapped *mapped, int to)
{
    const struct accelerator *accelerator = accelerator_of(mapped);
    const struct record *record = mapped->record;
    struct receiver *receiver = &mapped->receiver[to];
    uint64_t now_ms = worker_of(mapped)->loop.now_ms;
    uint32_t waiting, enough = receiver->pace == PACE_BEHIND ? record->window / 2 : 0;

    if (to == UPSTREAM)
        waiting = unacknowledged(mapped);
    else if (accelerator_run(accelerator, accelerator->probe, record) == ANSWER_OK)
        waiting = record->queued + record->unread;
    else /* it is closed: the end is on its way */
        waiting = UINT32_MAX;
    if (waiting < receiver->waiting)
        receiver->progress_ms = now_ms;
    receiver->waiting = waiting;
    if (waiting <= enough)
        set_pace(mapped, to, PACE_KEEPS_UP);
    else if (now_ms >= receiver->progress_ms + STALL_MS || now_ms >= receiver->since_ms + POLLED_MS)
        set_pace(mapped, to, PACE_STALLED);
    else
        return;
    tunnel_go_on(mapped->tunnel);
}

static void poll_expired(struct timer *timer)
{
    struct sockmap *sockmap = OWNER(timer, struct sockmap, poll);
    struct loop *loop = &sockmap->worker->loop;
    uint64_t began_ns = clock_ns(CLOCK_MONOTONIC), rest_ns;
    struct sockmapped *next;

    for (struct sockmapped *mapped = sockmap->polled; mapped; mapped = next) {
        next = mapped->next_polled; /* this one may leave the list */
        for (int to = DOWNSTREAM; to <= UPSTREAM; to++)
            if (is_waited_for(&mapped->receiver[to]))
                poll_receiver(mapped, to);
    }
    rest_ns = (clock_ns(CLOCK_MONOTONIC) - began_ns) * POLL_SHARE;
    if (sockmap->polled)
        timer_set(&loop->timers, timer, loop->now_ns + (rest_ns > POLL_NS ? rest_ns : POLL_NS),
                  poll_expired);
}

/* ---- beside the flows of an attached tunnel ---- */

static bool attached_waits(struct tunnel *tunnel, int to)
{
    struct sockmapped *mapped = tunnel->extra;
    const struct receiver *receiver = &mapped->receiver[to];

    if (receiver->pace == PACE_STALLED &&
        tunnel_worker(tunnel)->loop.now_ms >= receiver->since_ms + RETRY_MS)
        go_on_with(mapped, to);
    /* There is something to relay to the upstream, so it had no room. */
    if (receiver->pace == PACE_KEEPS_UP && to == UPSTREAM && !mapped->record->local &&
        unacknowledged(mapped) > mapped->record->window / 2) {
        set_pace(mapped, to, PACE_BEHIND);
        return true;
    }
    return is_waited_for(receiver);
}

static void attached_writable(struct tunnel *tunnel, int to)
{
    go_on_with(tunnel->extra, to);
}

static void attached_copying(struct tunnel *tunnel, int from)
{
    struct sockmapped *mapped = tunnel->extra;

    if (from == UPSTREAM)
        mapped->redirected_before =
            __atomic_load_n(&mapped->record->redirected[1], __ATOMIC_RELAXED);
}

static void attached_copied(struct tunnel *tunnel, int from, bool bulk)
{
    struct sockmapped *mapped = tunnel->extra;
    const struct record *record = mapped->record;

    if (from == DOWNSTREAM || !mapped->joined || mapped->receiver[DOWNSTREAM].pace != PACE_KEEPS_UP)
        return;
    if (record->redirected[1] == mapped->redirected_before) {
        if (bulk) /* else it would take TCP for ever, which never gets empty */
            set_pace(mapped, DOWNSTREAM, PACE_SWITCHING);
    } else if (record->queued + SCRATCH_SIZE > record->window) {
        set_pace(mapped, DOWNSTREAM, PACE_BEHIND);
    }
}

static bool attached_reads_both(const struct tunnel *tunnel, int from)
{
    const struct sockmapped *mapped = tunnel->extra;

    return mapped->record->local && from == DOWNSTREAM;
}

static void attached_forwarded(struct tunnel *tunnel, int from, size_t bytes)
{
    const struct sockmapped *mapped = tunnel->extra;
    struct record *record = mapped->record;

    if (from == DOWNSTREAM)
        __atomic_store_n(&record->forwarded, record->forwarded + bytes, __ATOMIC_RELEASE);
}

static bool attached_splice(struct tunnel *tunnel, int from)
{
    struct sockmapped *mapped = tunnel->extra;

    /* Redirected data cannot be spliced, and in `local` everything is redirected. */
    if (mapped->record->local)
        return false;
    /* Redirecting copies each message twice; TCP takes a blast's pages as they are. */
    if (from == UPSTREAM) {
        set_joined(mapped, false);
        set_pace(mapped, DOWNSTREAM, PACE_KEEPS_UP);
    }
    return true;
}

static void attached_copy(struct tunnel *tunnel, int from)
{
    if (from == UPSTREAM)
        set_joined(tunnel->extra, true);
}

/* Accounts bytes that went to the upstream without us since the last call. True if there were any.
 */
static bool count_redirected(struct sockmapped *mapped)
{
    uint64_t sum = __atomic_load_n(&mapped->record->redirected[0], __ATOMIC_RELAXED);
    uint64_t more = sum - mapped->counted;

    if (more == 0 || mapped->record->local)
        return false;
    mapped->counted = sum;
    follow_nodelay(mapped);
    flow_count(mapped->tunnel, DOWNSTREAM, more);
    return true;
}

/* ---- going back to the relay ---- */

/* One step back to the relay. True when the sockets are out of their maps: after programs that
 * still run have finished, and everything that was redirected has been read. */
static bool leave_maps(struct sockmapped *mapped)
{
    const struct accelerator *accelerator = accelerator_of(mapped);
    uint64_t now_ms = worker_of(mapped)->loop.now_ms;
    struct record *record = mapped->record;
    int unlocked = 0;

    if (!mapped->leaves_at_ms) {
        mapped->leaves_at_ms = now_ms + ACCELERATOR_REST_MS;
        __atomic_store_n(&record->window, 0, __ATOMIC_RELEASE);
    }
    if (now_ms < mapped->leaves_at_ms ||
        accelerator_run(accelerator, accelerator->probe, record) != ANSWER_OK)
        return false;
    if (record->arrived == 0)
        set_joined(mapped, false);
    if (mapped->joined || record->queued > 0)
        return false;
    accelerator_remove(accelerator, record, ROLE_APPLICATION);
    /* Lets the kernel size these buffers again, and shrink them when memory is short. */
    for (int side = DOWNSTREAM; side <= UPSTREAM; side++)
        setsockopt(fd_of(mapped, side), SOL_SOCKET, SO_BUF_LOCK, &unlocked, sizeof unlocked);
    return true;
}

/* Redirected data has no urgent mark: goes back to the relay. */
static void attached_urgent(struct tunnel *tunnel, int from)
{
    struct sockmapped *mapped = tunnel->extra;

    (void)from;
    if (!mapped->leaves_at_ms)
        (void)leave_maps(mapped);
}

static void attached_stop(struct tunnel *tunnel)
{
    const struct sockmapped *mapped = tunnel->extra;

    /* First of all: from here on the programs find nothing to redirect to. */
    __atomic_store_n(&mapped->record->id, 0, __ATOMIC_SEQ_CST);
}

static void attached_release(struct tunnel *tunnel)
{
    struct sockmapped *mapped = tunnel->extra;

    set_polled(mapped, false);
    count_redirected(mapped);
    accelerator_give_back(accelerator_of(mapped), mapped->record, worker_of(mapped)->loop.now_ms);
    give_up(tunnel);
}

/* Where TCP's memory is used up, a socket in a sockmap can send nothing, while what waits for it is
 * a part of that memory; an ordinary one may always send a little. So when memory is short,
 * connections become ordinary ones, and stay so: this is rare. */
static uint64_t attached_tick(struct tunnel *tunnel)
{
    struct sockmapped *mapped = tunnel->extra;
    uint64_t now_ms = tunnel_worker(tunnel)->loop.now_ms;
    bool busy = count_redirected(mapped);
    bool is_short = accelerator_memory_is_short(accelerator_of(mapped), now_ms);

    if (mapped->leaves_at_ms || is_short) {
        /* Somebody has to keep looking until the shortage is over. */
        if (!leave_maps(mapped) || is_short)
            return now_ms + TICK_BUSY_MS;
        trace(tunnel_worker(tunnel), tunnel->session->id, left_kernel, 0, 0);
        attached_stop(tunnel);
        attached_release(tunnel);
        tunnel_go_on(tunnel); /* it may have waited for a receiver */
        return UINT64_MAX;
    }
    set_window(mapped);
    return now_ms + (busy ? TICK_BUSY_MS : TICK_IDLE_MS);
}

static const struct flow_ops attached_ops = {
    .waits = attached_waits,
    .writable = attached_writable,
    .copying = attached_copying,
    .copied = attached_copied,
    .reads_both = attached_reads_both,
    .forwarded = attached_forwarded,
    .splice = attached_splice,
    .copy = attached_copy,
    .urgent = attached_urgent,
    .tick = attached_tick,
    .stop = attached_stop,
    .release = attached_release,
};

/* ---- a worker's part ---- */

struct sockmap *sockmap_create(struct worker *worker)
{
    struct sockmap *sockmap = calloc(1, sizeof *sockmap);

    if (!sockmap || !timers_reserve(&worker->loop.timers, 1)) {
        free(sockmap);
        return NULL;
    }
    sockmap->worker = worker;
    sockmap->poll.index = TIMER_OFF;
    return sockmap;
}

void sockmap_destroy(struct worker *worker)
{
    struct sockmap *sockmap = worker->sockmap;

    if (!sockmap)
        return;
    assert(!sockmap->polled);
    timers_release(&worker->loop.timers, 1);
    free(sockmap);
}
