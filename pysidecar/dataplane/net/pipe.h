/* Pipes for splice(), of which a worker keeps some that are empty. */
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

/* NULL where there are no descriptors or no memory for one. */
struct pipe *pipe_acquire(struct worker *worker);
/* With what may be in it. */
void pipe_give_back(struct worker *worker, struct pipe *pipe);
/* Closes those that nobody uses. */
void pipes_close(struct worker *worker);

#endif
