/* Zeros for many objects of one size, most of which nobody may ever write to: those take no memory.
 * For one thread. */
#ifndef PYSIDECAR_BASE_SLAB_H
#define PYSIDECAR_BASE_SLAB_H

#include <stddef.h>

struct slab_chunk;
struct slab_free;

struct slab {
    size_t size; /* of an object */
    size_t taken;
    struct slab_chunk *chunks; /* the newest first */
    struct slab_free *free;
};

void slab_init(struct slab *slab, size_t size);
/* NULL when out of memory. */
void *slab_take(struct slab *slab);
void slab_give(struct slab *slab, void *object); /* NULL is allowed */
/* With all given back. */
void slab_close(struct slab *slab);

#endif
