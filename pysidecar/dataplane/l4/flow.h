/* One direction of a tunnel.
 *
 * Small traffic goes through the worker's scratch memory (read, write), bulk through a pipe
 * (splice): which one is chosen by what the direction does, not once for all. Bytes that were read
 * and could not be sent wait in a chunk or in the pipe; until they are gone nothing more is read
 * (that is the backpressure), and a direction that waits for nothing holds no memory.
 *
 * An urgent byte stays at its place in the stream (SO_OOBINLINE). A read ends before it, and
 * splice() never passes it, so it is what the next read begins with: it is asked for (SIOCATMARK)
 * wherever that is not known, read alone, and sent as urgent. */
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
    uint8_t streak; /* consecutive full reads, or small ones while splicing */
    bool splicing;
    bool held_back; /* what it holds was not taken when it was read */
};

enum progress {
    PROGRESS_BLOCKED, /* nothing more to do until an event */
    PROGRESS_BATCH,   /* there is more to do, but others first */
    PROGRESS_DONE,    /* everything was passed on, the end included */
    PROGRESS_FAILED,  /* a side was reset; session->end and error say how */
    PROGRESS_LOST,    /* bytes that were read cannot be kept: nothing may follow the gap */
};

/* What may take a tunnel's bytes past its flows, or hold them back: acceleration, faults. A flow is
 * named by the side that it reads. Each member may be NULL. */
struct flow_ops {
    /* The flows have done what they can for now. */
    void (*ran)(struct tunnel *tunnel);
    /* Whether nothing is to be sent to that side for now. Then a task of the tunnel's, or
     * `writable`, goes on with it. */
    bool (*waits)(struct tunnel *tunnel, int to);
    /* That side's socket takes bytes again. */
    void (*writable)(struct tunnel *tunnel, int to);
    /* Bytes are to be read, and were sent; `bulk`: as many as a read takes. */
    void (*copying)(struct tunnel *tunnel, int from);
    void (*copied)(struct tunnel *tunnel, int from, bool bulk);
    /* Whether bytes come by another way than the socket's own queue, too, so that a short read does
     * not mean that there are no more. */
    bool (*reads_both)(const struct tunnel *tunnel, int from);
    /* A flow has sent so many bytes. */
    void (*forwarded)(struct tunnel *tunnel, int from, size_t bytes);
    /* From now on the flow is to be spliced: false where it cannot be. Or copied again. */
    bool (*splice)(struct tunnel *tunnel, int from);
    void (*copy)(struct tunnel *tunnel, int from);
    /* An urgent byte is to be sent. */
    void (*urgent)(struct tunnel *tunnel, int from);
    /* The tunnel's timer: when to come back, in ms of the loop's clock; UINT64_MAX: never. */
    uint64_t (*tick)(struct tunnel *tunnel);
    /* The sockets are going to be closed; they were. */
    void (*stop)(struct tunnel *tunnel);
    void (*release)(struct tunnel *tunnel);
};

/* Moves what can be moved now. `pass_end`: whether an end that is read is passed on. */
enum progress flow_run(struct tunnel *tunnel, int from, bool pass_end);
/* Notes that a side was reset, as an operation on it told. */
enum progress flow_side_failed(struct tunnel *tunnel, int side, int error);
/* Accounts bytes that were forwarded. */
void flow_count(struct tunnel *tunnel, int from, size_t bytes);
/* Frees its buffers. */
void flow_release(struct tunnel *tunnel, int from);

#endif
