/* Beside the flows of a tunnel. */
#include "l4/sockmap.h"
#include "l4/sockmapped.h"
#include "l4/tunnel.h"

static void tunnel_runs_on(struct session *session)
{
    tunnel_go_on(session->served);
}

/* ---- an attached tunnel ---- */

static bool attached_waits(struct tunnel *tunnel, int to)
{
    return sockmapped_waits(tunnel->extra, to);
}

static void attached_writable(struct tunnel *tunnel, int to)
{
    sockmapped_writable(tunnel->extra, to);
}

static void attached_copying(struct tunnel *tunnel, int from)
{
    if (from == UPSTREAM)
        sockmapped_sends(tunnel->extra);
}

static void attached_copied(struct tunnel *tunnel, int from, bool bulk)
{
    if (from == UPSTREAM)
        sockmapped_sent(tunnel->extra, bulk);
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
        sockmapped_set_joined(mapped, false);
        sockmapped_keeps_up(mapped, DOWNSTREAM);
    }
    return true;
}

static void attached_copy(struct tunnel *tunnel, int from)
{
    if (from == UPSTREAM)
        sockmapped_set_joined(tunnel->extra, true);
}

/* Accounts bytes that went to the upstream without us since the last call. True if there were any.
 */
static bool count_redirected(struct tunnel *tunnel)
{
    uint64_t bytes = sockmapped_take_redirected(tunnel->extra);

    if (bytes > 0)
        flow_count(tunnel, DOWNSTREAM, bytes);
    return bytes > 0;
}

/* Redirected data has no urgent mark: goes back to the relay. */
static void attached_urgent(struct tunnel *tunnel, int from)
{
    struct sockmapped *mapped = tunnel->extra;

    (void)from;
    if (!mapped->leaves_at_ms)
        (void)sockmapped_leave(mapped);
}

static void attached_stop(struct tunnel *tunnel)
{
    sockmapped_stop(tunnel->extra);
}

/* The tunnel stays a relay. */
static void give_up(struct tunnel *tunnel)
{
    if (tunnel->extra)
        sockmapped_free(tunnel->extra);
    tunnel->extra = NULL;
    tunnel->ops = NULL;
}

static void attached_release(struct tunnel *tunnel)
{
    count_redirected(tunnel);
    give_up(tunnel);
}

static uint64_t attached_tick(struct tunnel *tunnel)
{
    uint64_t next = sockmapped_tick(tunnel->extra, count_redirected(tunnel));

    if (next == UINT64_MAX) {
        attached_stop(tunnel);
        attached_release(tunnel);
        tunnel_go_on(tunnel); /* it may have waited for a receiver */
    }
    return next;
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

/* ---- one that may become one ---- */

static void begin_attached(struct tunnel *tunnel)
{
    struct sockmapped *mapped = tunnel->extra;

    tunnel->ops = &attached_ops;
    if (mapped->record->local)
        tunnel->flow[DOWNSTREAM].splicing = tunnel->flow[UPSTREAM].splicing = false;
    sockmapped_begin(mapped, !tunnel->flow[UPSTREAM].splicing);
    tunnel_tick_in(tunnel, TICK_BUSY_MS);
}

static void watching_ran(struct tunnel *tunnel)
{
    if (!sockmapped_pays(tunnel->session, tunnel->round_trips))
        return;
    if (!tunnel->extra)
        tunnel->extra = sockmapped_create(tunnel->session, &tunnel->upstream, tunnel_runs_on);
    switch (tunnel->extra ? sockmapped_attach(tunnel->extra) : ATTACH_NEVER) {
    case ATTACH_DONE:
        begin_attached(tunnel);
        break;
    case ATTACH_NEVER:
        give_up(tunnel);
        break;
    case ATTACH_LATER:
        break;
    }
}

static void watching_release(struct tunnel *tunnel)
{
    give_up(tunnel);
}

static const struct flow_ops watching_ops = {.ran = watching_ran, .release = watching_release};

const struct flow_ops *sockmap_ops(struct tunnel *tunnel)
{
    struct session *session = tunnel->session;

    tunnel->extra = sockmapped_take_over(session);
    if (tunnel->extra) {
        struct sockmapped *mapped = tunnel->extra;

        mapped->upstream = &tunnel->upstream;
        mapped->go_on = tunnel_runs_on;
        tunnel_tick_in(tunnel, TICK_BUSY_MS);
        return &attached_ops;
    }
    return sockmapped_is_for(session) ? &watching_ops : NULL;
}
