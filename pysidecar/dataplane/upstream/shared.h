/* Objects that any thread may reference, and that one thread frees, their keeper's: the one that
 * looks them up. Whoever else gives the last reference back gives it to the keeper. So a worker
 * never pays for what it was the last to use, and the keeper's tables need no lock. */
#ifndef PYSIDECAR_UPSTREAM_SHARED_H
#define PYSIDECAR_UPSTREAM_SHARED_H

#include <stdatomic.h>
#include <stddef.h>

/* The first member of such an object. */
struct shared {
    atomic_size_t references;
    struct shared *next_returned;
    struct keeper *keeper;
    void (*destroy)(struct shared *shared);
};

struct keeper {
    _Atomic(struct shared *) returned;
    int event; /* an eventfd that calls the keeper's thread; -1: it comes by itself */
};

/* With one reference. `destroy` is called in the keeper's thread. */
void shared_init(struct shared *shared, struct keeper *keeper, void (*destroy)(struct shared *));
/* By whoever has a reference, or is the keeper's thread. */
void shared_reference(struct shared *shared);
/* In any thread. */
void shared_release(struct shared *shared);

/* The following are for the keeper's thread. */

/* As shared_release, but what is not used any more is freed at once. */
void keeper_release(struct shared *shared);
/* Frees what others were the last to use. */
void keeper_collect(struct keeper *keeper);

#endif
