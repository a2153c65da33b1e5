/* What a client has of what all clients of a worker share: streams of HTTP/2, and what waits in
 * them. A client is a user of this host, or another host. Each leaves an eighth of what the others
 * leave, so that something is left for newcomers. */
#ifndef PYSIDECAR_L7_SHARE_H
#define PYSIDECAR_L7_SHARE_H

#include "l7/buffer.h"

struct session;
struct worker;

enum { SHARE_SLOTS = 1024 };

struct share {
    uint64_t bytes; /* of buffers */
    uint32_t streams;
};

/* A worker's. Begin with zeros, then set `most_streams`. */
struct shares {
    struct share of[SHARE_SLOTS]; /* by a hash of the client, so clients may share one */
    uint32_t streams, most_streams;
};

/* Asks the kernel whose connection it is, where it comes from this host and that is not known. */
struct share *share_of(struct worker *worker, const struct session *session);
/* Whether the client may have one more stream, which is counted. */
bool share_take_stream(struct shares *shares, struct share *share);
void share_give_stream(struct shares *shares, struct share *share);
/* Whether the client may have so many more bytes of the worker's blocks. */
bool share_may_hold(const struct share *share, const struct blocks *blocks, size_t size);

#endif
