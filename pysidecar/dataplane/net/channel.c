#include "net/channel.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/owner.h"

/* ---- the raw transport ---- */

static ssize_t raw_read(struct channel *channel, void *to, size_t size)
{
    return recv(channel->watch.fd, to, size, 0);
}

static ssize_t raw_write(struct channel *channel, const void *from, size_t size, int flags)
{
    return send(channel->watch.fd, from, size, MSG_NOSIGNAL | flags);
}

static ssize_t raw_to_pipe(struct channel *channel, int pipe, size_t size)
{
    return splice(channel->watch.fd, NULL, pipe, NULL, size, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
}

static ssize_t raw_from_pipe(struct channel *channel, int pipe, size_t size)
{
    return splice(pipe, NULL, channel->watch.fd, NULL, size, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
}

static int raw_shut(struct channel *channel)
{
    return shutdown(channel->watch.fd, SHUT_WR);
}

const struct transport transport_raw = {
    .read = raw_read,
    .write = raw_write,
    .to_pipe = raw_to_pipe,
    .from_pipe = raw_from_pipe,
    .shut = raw_shut,
};

/* ---- channels ---- */

static void channel_ready(struct watch *watch, uint32_t events)
{
    struct channel *channel = OWNER(watch, struct channel, watch);

    if (events & (EPOLLIN | EPOLLPRI | EPOLLHUP | EPOLLRDHUP | EPOLLERR))
        channel->readable = true; /* an error is found by reading too */
    if (events & EPOLLRDHUP)
        channel->hung_up = true;
    if (events & EPOLLPRI)
        channel->urgent = true;
    /* What was read meanwhile may be what the event was about. */
    channel->plain = (events & (EPOLLIN | EPOLLPRI)) == EPOLLIN && !channel->outdated;
    channel->outdated = false;
    if (channel->writable)
        events &= ~(uint32_t)EPOLLOUT;
    else if (events & EPOLLOUT)
        channel->writable = true;
    if (channel->changed)
        channel->changed(channel, events);
}

void channel_init(struct channel *channel)
{
    memset(channel, 0, sizeof *channel);
    channel->watch.fd = -1;
    channel->watch.ready = channel_ready;
    channel->transport = &transport_raw;
}

int channel_watch(struct loop *loop, struct channel *channel)
{
    return loop_watch(loop, &channel->watch, EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET);
}

void channel_close(struct loop *loop, struct channel *channel, bool reset)
{
    static const struct linger in_order = {.l_onoff = 0};

    if (channel->transport->close)
        channel->transport->close(channel);
    if (!reset && channel_is_open(channel))
        setsockopt(channel->watch.fd, SOL_SOCKET, SO_LINGER, &in_order, sizeof in_order);
    loop_close_watch(loop, &channel->watch);
}

static void was_read(struct channel *channel)
{
    channel->plain = false;
    channel->outdated = watch_is_pending(&channel->watch);
}

ssize_t channel_read(struct channel *channel, void *to, size_t size)
{
    was_read(channel);
    return channel->transport->read(channel, to, size);
}

ssize_t channel_to_pipe(struct channel *channel, int pipe, size_t size)
{
    was_read(channel);
    return channel->transport->to_pipe(channel, pipe, size);
}

bool channel_is_at_mark(const struct channel *channel)
{
    int at_mark = 0;

    return !channel->plain && ioctl(channel->watch.fd, SIOCATMARK, &at_mark) == 0 && at_mark;
}
