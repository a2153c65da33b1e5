/* As the transport of a session's downstream channel. */
#include "l4/sockmap.h"

#include <errno.h>

#include "l4/sockmapped.h"

enum { BULK_BYTES = SCRATCH_SIZE / 2 }; /* a write of so much: more will follow at once */

static struct sockmapped *mapped_of(const struct channel *channel)
{
    return channel->transported;
}

static void detach(struct channel *channel)
{
    channel->transport = &transport_raw;
    channel->transported = NULL;
}

static ssize_t mapped_read(struct channel *channel, void *to, size_t size)
{
    return transport_raw.read(channel, to, size);
}

/* While the application is waited for, the channel takes nothing, as any other that is full. */
static ssize_t mapped_write(struct channel *channel, const void *from, size_t size, int flags)
{
    struct sockmapped *mapped = mapped_of(channel);
    ssize_t sent;

    if (!mapped->record)
        return transport_raw.write(channel, from, size, flags);
    if (sockmapped_waits(mapped, DOWNSTREAM)) {
        errno = EAGAIN;
        return -1;
    }
    sockmapped_sends(mapped);
    sent = transport_raw.write(channel, from, size, flags);
    if (sent > 0)
        sockmapped_sent(mapped, size >= BULK_BYTES);
    return sent;
}

static int mapped_shut(struct channel *channel)
{
    return transport_raw.shut(channel);
}

static void mapped_close(struct channel *channel)
{
    struct sockmapped *mapped = mapped_of(channel);

    detach(channel);
    sockmapped_free(mapped);
}

/* Nothing is spliced: what was redirected cannot be. */
static const struct transport transport_mapped = {
    .read = mapped_read,
    .write = mapped_write,
    .shut = mapped_shut,
    .close = mapped_close,
    .short_reads = true,
};

bool sockmap_is_for(const struct session *session)
{
    return sockmapped_is_for(session);
}

static bool is_mapped(const struct session *session)
{
    return session->downstream.transport == &transport_mapped;
}

static bool begin_to_try(struct session *session, void (*go_on)(struct session *session))
{
    session->downstream.transported = sockmapped_create(session, NULL, go_on);
    if (!session->downstream.transported)
        return false;
    session->downstream.transport = &transport_mapped;
    return true;
}

enum sockmap_state sockmap_try(struct session *session, uint32_t round_trips,
                               void (*go_on)(struct session *session))
{
    if (!sockmapped_pays(session, round_trips))
        return SOCKMAP_NOT_YET;
    if (!is_mapped(session) && !begin_to_try(session, go_on))
        return SOCKMAP_OFF;
    switch (sockmapped_attach(mapped_of(&session->downstream))) {
    case ATTACH_DONE:
        sockmapped_begin(mapped_of(&session->downstream), true);
        return SOCKMAP_ON;
    case ATTACH_NEVER:
        mapped_close(&session->downstream);
        return SOCKMAP_OFF;
    default:
        return SOCKMAP_NOT_YET;
    }
}

uint64_t sockmap_tick(struct session *session)
{
    struct sockmapped *mapped = mapped_of(&session->downstream);
    void (*go_on)(struct session * session) = mapped->go_on;
    uint64_t next = sockmapped_tick(mapped, false);

    if (next == UINT64_MAX) {
        mapped_close(&session->downstream);
        go_on(session); /* it may have waited for the application */
    }
    return next;
}

struct sockmapped *sockmapped_take_over(struct session *session)
{
    struct sockmapped *mapped;

    if (!is_mapped(session))
        return NULL;
    mapped = mapped_of(&session->downstream);
    detach(&session->downstream);
    session->downstream.writable = true; /* it may have been the application that was waited for */
    if (mapped->record)
        return mapped;
    sockmapped_free(mapped); /* it was still being tried */
    return NULL;
}
