/* Objects that any thread may reference, and only their keeper's thread looks up and frees. A
 * worker that drops the last reference hands the object to the keeper. So workers never pay for
 * freeing, and the keeper's maps need no lock. */
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
    int event; /* an eventfd that wakes the keeper's thread; -1 if it looks by itself */
};

/* Initializes an object with one reference. The keeper's thread calls `destroy`. */
void shared_init(struct shared *shared, struct keeper *keeper, void (*destroy)(struct shared *));
/* The caller has a reference, or is the keeper's thread. */
void shared_reference(struct shared *shared);
/* From any thread. */
void shared_release(struct shared *shared);

/* The following are for the keeper's thread. */

/* As shared_release, but frees the object at once if that was the last reference. */
void keeper_release(struct shared *shared);
/* Frees the objects whose last reference others dropped. */
void keeper_collect(struct keeper *keeper);

#endif
