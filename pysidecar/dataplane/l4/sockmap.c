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
#include "l4/sockmapped.h"

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
    RETRY_MS = 10, /* of a receiver that stalled, and gets bytes by TCP */
    TRIES = 8,     /* to attach a session, at doubling distances */
};

struct sockmap {
    struct worker *worker;
    struct sockmapped *polled; /* those with a receiver that is waited for */
    struct timer poll;
};

static struct worker *worker_of(const struct sockmapped *sockmapped)
{
    return sockmapped->session->worker;
}

static struct accelerator *accelerator_of(const struct sockmapped *sockmapped)
{
    return worker_of(sockmapped)->accelerator;
}

static int fd_of(const struct sockmapped *sockmapped, int side)
{
    return side == DOWNSTREAM ? sockmapped->session->downstream.watch.fd
                              : sockmapped->upstream->watch.fd;
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
    const struct session *session = mapped->session;
    struct record *record = mapped->record;

    memset(record, 0, sizeof *record);
    record->local = !mapped->upstream || accelerator->settings.path == DP_PATH_LOCAL;
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
        (mapped->upstream && !describe_socket(fd_of(mapped, UPSTREAM), &record->upstream)))
        return ANSWER_NO_SOCKET;
    __atomic_store_n(&record->id, mapped->session->id, __ATOMIC_RELEASE);
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

void sockmapped_set_joined(struct sockmapped *mapped, bool joined)
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

bool sockmapped_is_for(const struct session *session)
{
    /* Only the hook makes up for what a redirected socket does differently (see hook/receive.c). */
    return session->worker->accelerator->object &&
           session->origin.listener->direction == DP_OUTBOUND && session->hooked;
}

bool sockmapped_pays(const struct session *session, uint32_t round_trips)
{
    const struct dp_acceleration *settings = &session->worker->accelerator->settings;

    return round_trips >= settings->after_round_trips ||
           counter_read(&session->bytes[DOWNSTREAM]) + counter_read(&session->bytes[UPSTREAM]) >=
               settings->after_bytes;
}

void sockmapped_begin(struct sockmapped *mapped, bool joined)
{
    enum dp_path path = mapped->record->local ? DP_PATH_LOCAL : DP_PATH_FULL;

    trace(worker_of(mapped), mapped->session->id, accelerated, path, mapped->tries);
    sockmapped_set_joined(mapped, joined);
    set_window(mapped); /* from here on there is room to redirect to */
    atomic_store_explicit(&mapped->session->path, path, memory_order_relaxed);
}

/* Some obstacles pass: the application's end is established later than ours, or its socket still
 * blocks. An ended direction does not. */
enum attempt_outcome sockmapped_attach(struct sockmapped *mapped)
{
    uint64_t now_ms = worker_of(mapped)->loop.now_ms;
    int answer;

    if (now_ms < mapped->again_at_ms)
        return ATTACH_LATER;
    mapped->record = accelerator_take(accelerator_of(mapped), now_ms);
    if (!mapped->record)
        return ATTACH_NEVER;
    answer = attach_sockets(mapped);
    if (answer == ANSWER_OK)
        return ATTACH_DONE;
    accelerator_give_back(accelerator_of(mapped), mapped->record, now_ms);
    mapped->record = NULL;
    mapped->tries = answer == ANSWER_ENDED ? 0 : mapped->tries - 1;
    trace(worker_of(mapped), mapped->session->id, not_accelerated, mapped->tries, 0);
    if (mapped->tries == 0)
        return ATTACH_NEVER;
    mapped->again_at_ms = now_ms + (1u << (TRIES - mapped->tries - 1));
    return ATTACH_LATER;
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
    if (!waited && is_waited_for(&mapped->receiver[to]))
        trace(worker_of(mapped), mapped->session->id, held_back, to, 0);
    else if (waited && !is_waited_for(&mapped->receiver[to]))
        trace(worker_of(mapped), mapped->session->id, goes_on, to, 0);
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

void sockmapped_writable(struct sockmapped *mapped, int to)
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
    mapped->go_on(mapped->session);
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

/* ---- beside what is sent ---- */

bool sockmapped_waits(struct sockmapped *mapped, int to)
{
    const struct receiver *receiver = &mapped->receiver[to];

    if (receiver->pace == PACE_STALLED &&
        worker_of(mapped)->loop.now_ms >= receiver->since_ms + RETRY_MS)
        sockmapped_writable(mapped, to);
    /* There is something to relay to the upstream, so it had no room. */
    if (receiver->pace == PACE_KEEPS_UP && to == UPSTREAM && !mapped->record->local &&
        unacknowledged(mapped) > mapped->record->window / 2) {
        set_pace(mapped, to, PACE_BEHIND);
        return true;
    }
    return is_waited_for(receiver);
}

void sockmapped_keeps_up(struct sockmapped *mapped, int to)
{
    set_pace(mapped, to, PACE_KEEPS_UP);
}

void sockmapped_sends(struct sockmapped *mapped)
{
    mapped->redirected_before = __atomic_load_n(&mapped->record->redirected[1], __ATOMIC_RELAXED);
}

void sockmapped_sent(struct sockmapped *mapped, bool bulk)
{
    const struct record *record = mapped->record;

    if (!mapped->joined || mapped->receiver[DOWNSTREAM].pace != PACE_KEEPS_UP)
        return;
    if (record->redirected[1] == mapped->redirected_before) {
        if (bulk) /* else it would take TCP for ever, which never gets empty */
            set_pace(mapped, DOWNSTREAM, PACE_SWITCHING);
    } else if (record->queued + SCRATCH_SIZE > record->window) {
        set_pace(mapped, DOWNSTREAM, PACE_BEHIND);
    }
}

uint64_t sockmapped_take_redirected(struct sockmapped *mapped)
{
    uint64_t sum = __atomic_load_n(&mapped->record->redirected[0], __ATOMIC_RELAXED);
    uint64_t more = sum - mapped->counted;

    if (more == 0 || mapped->record->local)
        return 0;
    mapped->counted = sum;
    follow_nodelay(mapped);
    return more;
}

/* ---- going back to plain TCP ---- */

/* The sockets are out of their maps after programs that still run have finished, and everything
 * that was redirected has been read. */
bool sockmapped_leave(struct sockmapped *mapped)
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
        sockmapped_set_joined(mapped, false);
    if (mapped->joined || record->queued > 0)
        return false;
    accelerator_remove(accelerator, record, ROLE_APPLICATION);
    /* Lets the kernel size these buffers again, and shrink them when memory is short. */
    for (int side = DOWNSTREAM; side <= (mapped->upstream ? UPSTREAM : DOWNSTREAM); side++)
        setsockopt(fd_of(mapped, side), SOL_SOCKET, SO_BUF_LOCK, &unlocked, sizeof unlocked);
    return true;
}

/* Where TCP's memory is used up, a socket in a sockmap can send nothing, while what waits for it is
 * a part of that memory; an ordinary one may always send a little. So when memory is short,
 * connections become ordinary ones, and stay so: this is rare. */
uint64_t sockmapped_tick(struct sockmapped *mapped, bool busy)
{
    uint64_t now_ms = worker_of(mapped)->loop.now_ms;
    bool is_short = accelerator_memory_is_short(accelerator_of(mapped), now_ms);

    if (!mapped->leaves_at_ms && !is_short) {
        set_window(mapped);
        return now_ms + (busy ? TICK_BUSY_MS : TICK_IDLE_MS);
    }
    /* Somebody has to keep looking until the shortage is over. */
    if (!sockmapped_leave(mapped) || is_short)
        return now_ms + TICK_BUSY_MS;
    trace(worker_of(mapped), mapped->session->id, left_kernel, 0, 0);
    return UINT64_MAX;
}

/* ---- its life ---- */

struct sockmapped *sockmapped_create(struct session *session, struct channel *upstream,
                                     void (*go_on)(struct session *session))
{
    struct sockmapped *mapped = calloc(1, sizeof *mapped);

    if (!mapped)
        return NULL;
    mapped->session = session;
    mapped->upstream = upstream;
    mapped->go_on = go_on;
    mapped->tries = TRIES;
    return mapped;
}

void sockmapped_stop(const struct sockmapped *mapped)
{
    /* First of all: from here on the programs find nothing to redirect to. */
    if (mapped->record)
        __atomic_store_n(&mapped->record->id, 0, __ATOMIC_SEQ_CST);
}

void sockmapped_free(struct sockmapped *mapped)
{
    if (mapped->record) {
        sockmapped_stop(mapped);
        set_polled(mapped, false);
        accelerator_give_back(accelerator_of(mapped), mapped->record,
                              worker_of(mapped)->loop.now_ms);
    }
    free(mapped);
}

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
