/* A byte stream to a peer: a socket with what is known of its state, the transport that its bytes
 * take, and one owner, who is told when something changes.
 *
 * A channel is watched once, edge-triggered: what epoll said stays noted until a read or a write
 * says otherwise. */
#ifndef PYSIDECAR_NET_CHANNEL_H
#define PYSIDECAR_NET_CHANNEL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "loop/loop.h"

struct channel;

/* What may stand between a channel and its socket. All but `shut` as the system calls: bytes, or -1
 * with errno. */
struct transport {
    ssize_t (*read)(struct channel *channel, void *to, size_t size);
    ssize_t (*write)(struct channel *channel, const void *from, size_t size, int flags);
    /* By splice(); NULL where bytes have to be looked at. */
    ssize_t (*to_pipe)(struct channel *channel, int pipe, size_t size);
    ssize_t (*from_pipe)(struct channel *channel, int pipe, size_t size);
    /* Sends the end. 0, or -1 with errno. */
    int (*shut)(struct channel *channel);
    /* Before the socket is closed. NULL where there is nothing to do. */
    void (*close)(struct channel *channel);
    bool short_reads; /* a read of less than was asked for does not mean that nothing more is there
                       */
};

extern const struct transport transport_raw;

struct channel {
    struct watch watch;
    const struct transport *transport;
    void *transported; /* the transport's own */
    /* The owner's; NULL: nobody wants to know yet. EPOLLOUT is only among the events if the channel
     * was not writable before. May be changed at any time. */
    void (*changed)(struct channel *channel, uint32_t events);
    bool readable; /* until a read says otherwise */
    bool writable; /* until a write says otherwise */
    bool hung_up;  /* EPOLLRDHUP came: there is an end to read */
    bool urgent;   /* EPOLLPRI came: there is a mark to reach */
    bool plain;    /* the next byte is not an urgent one, as epoll said */
    bool outdated; /* it was read after epoll said what has not been told yet */
    bool ended;    /* its end was read */
    bool finished; /* its write side was shut down */
};

/* One without a socket. */
void channel_init(struct channel *channel);
/* Begins to watch channel->watch.fd. 0 or -errno. */
int channel_watch(struct loop *loop, struct channel *channel);
/* Closes the socket if there is one. With `reset` the peer gets a reset, else an end in order (see
 * socket_tune). */
void channel_close(struct loop *loop, struct channel *channel, bool reset);
/* As the transport's; what epoll said of the next byte holds no longer. */
ssize_t channel_read(struct channel *channel, void *to, size_t size);
ssize_t channel_to_pipe(struct channel *channel, int pipe, size_t size);
/* Whether the next byte is an urgent one. */
bool channel_is_at_mark(const struct channel *channel);

static inline bool channel_is_open(const struct channel *channel)
{
    return channel->watch.fd >= 0;
}

#endif
