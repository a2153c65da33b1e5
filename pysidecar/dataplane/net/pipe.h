/* Pipes for splice(). A worker keeps a pool of empty ones. */
#ifndef PYSIDECAR_NET_PIPE_H
#define PYSIDECAR_NET_PIPE_H

#include <stddef.h>

#include "loop/worker.h"

enum { PIPE_SIZE = 512 * 1024 }; /* bytes */

struct pipe {
    struct pipe *next;
    int read_end, write_end;
    size_t held; /* bytes in it */
};

struct pipes {
    struct pipe *first;
    unsigned count;
};

/* NULL for lack of descriptors or memory. */
struct pipe *pipe_acquire(struct worker *worker);
/* Gives the pipe back, or closes it if it still holds bytes. */
void pipe_give_back(struct worker *worker, struct pipe *pipe);
/* Closes the pool. */
void pipes_close(struct worker *worker);

#endif
