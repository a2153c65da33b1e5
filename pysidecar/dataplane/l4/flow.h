/* One direction of a tunnel.
 *
 * Small traffic goes through the worker's scratch memory (read, write), bulk through a pipe
 * (splice); a flow changes between the two by what it carries. Bytes that were read and could not
 * be sent wait in a chunk or in the pipe. Until they are gone nothing more is read, which is the
 * backpressure; a flow with nothing waiting holds no memory.
 *
 * An urgent byte stays at its place in the stream (SO_OOBINLINE). A read ends before it, and
 * splice() never passes it, so the next read begins with it. The flow asks for the mark
 * (SIOCATMARK) wherever epoll has not ruled it out, reads the byte alone, and sends it as urgent.
 */
#ifndef PYSIDECAR_L4_FLOW_H
#define PYSIDECAR_L4_FLOW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct chunk;
struct pipe;
struct tunnel;

/* At most one of chunk and pipe holds bytes. */
struct flow {
    struct chunk *chunk; /* read but not sent; NULL when everything was sent */
    struct pipe *pipe;
    uint8_t streak; /* consecutive full reads; while splicing, small ones */
    bool splicing;
    bool held_back; /* the receiver did not take what the flow holds */
};

enum progress {
    PROGRESS_BLOCKED, /* nothing more to do until an event */
    PROGRESS_BATCH,   /* there is more to do, after others had their turn */
    PROGRESS_DONE,    /* everything was passed on, the end included */
    PROGRESS_FAILED,  /* a side was reset; session->end and error say how */
    PROGRESS_LOST,    /* bytes that were read cannot be kept: nothing may follow the gap */
};

/* What takes a tunnel's bytes past its flows, or holds them back: acceleration, faults. A flow is
 * named by the side that it reads. Each member may be NULL. Only `ran`, which comes last, may close
 * the session. */
struct flow_ops {
    /* The flows have done what they can for now. */
    void (*ran)(struct tunnel *tunnel);
    /* Whether nothing may be sent to that side for now. The ops then call tunnel_go_on(), or answer
     * otherwise after `writable`. */
    bool (*waits)(struct tunnel *tunnel, int to);
    /* That side's socket takes bytes again. */
    void (*writable)(struct tunnel *tunnel, int to);
    /* Before bytes are read to be copied, and after they were sent. `bulk`: as many as a read
     * takes. */
    void (*copying)(struct tunnel *tunnel, int from);
    void (*copied)(struct tunnel *tunnel, int from, bool bulk);
    /* Whether bytes also come by another way than the socket's own queue, so that a short read does
     * not mean that there are no more. */
    bool (*reads_both)(const struct tunnel *tunnel, int from);
    /* The flow has sent so many bytes. */
    void (*forwarded)(struct tunnel *tunnel, int from, size_t bytes);
    /* The flow is about to splice (false forbids it), or to copy again. */
    bool (*splice)(struct tunnel *tunnel, int from);
    void (*copy)(struct tunnel *tunnel, int from);
    /* An urgent byte is about to be sent. */
    void (*urgent)(struct tunnel *tunnel, int from);
    /* The tunnel's timer expired. Returns when to come back, in ms of the loop's clock; UINT64_MAX
     * for never. */
    uint64_t (*tick)(struct tunnel *tunnel);
    /* Before the sockets are closed; when the upstream's is. */
    void (*stop)(struct tunnel *tunnel);
    void (*release)(struct tunnel *tunnel);
};

/* Moves what can be moved now. `pass_end`: whether to pass on the end of the stream. */
enum progress flow_run(struct tunnel *tunnel, int from, bool pass_end);
/* Notes that an operation on that side reported a reset. */
enum progress flow_side_failed(struct tunnel *tunnel, int side, int error);
/* Accounts bytes that were forwarded. */
void flow_count(struct tunnel *tunnel, int from, size_t bytes);
/* Room for bytes that the flow passes on before it reads, once. NULL when out of memory. */
uint8_t *flow_hold(struct tunnel *tunnel, int from, size_t size);
/* Frees the flow's buffers. */
void flow_release(struct tunnel *tunnel, int from);

#endif
