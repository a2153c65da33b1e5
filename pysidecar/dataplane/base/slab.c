#include "base/slab.h"

#include <assert.h>
#include <string.h>
#include <sys/mman.h>

enum {
    CHUNK_BYTES = 1 << 20, /* at least */
    ALIGNMENT = 64,        /* a cache line: neighbours are others' */
};

struct slab_chunk {
    struct slab_chunk *next;
    size_t bytes, used;
};

/* What an object is that was given back. */
struct slab_free {
    struct slab_free *next;
};

void slab_init(struct slab *slab, size_t size)
{
    *slab = (struct slab){.size = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT};
}

static struct slab_chunk *add_chunk(struct slab *slab)
{
    size_t bytes = ALIGNMENT + slab->size > CHUNK_BYTES ? ALIGNMENT + slab->size : CHUNK_BYTES;
    struct slab_chunk *chunk =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    _Static_assert(sizeof *chunk <= ALIGNMENT, "what follows is aligned");
    if (chunk == MAP_FAILED)
        return NULL;
    *chunk = (struct slab_chunk){slab->chunks, bytes, ALIGNMENT};
    slab->chunks = chunk;
    return chunk;
}

void *slab_take(struct slab *slab)
{
    struct slab_chunk *chunk = slab->chunks;
    void *object = slab->free;

    if (object) {
        slab->free = slab->free->next;
        memset(object, 0, slab->size);
    } else {
        if (!chunk || chunk->bytes - chunk->used < slab->size)
            chunk = add_chunk(slab);
        if (!chunk)
            return NULL;
        object = (char *)chunk + chunk->used;
        chunk->used += slab->size;
    }
    slab->taken++;
    return object;
}

void slab_give(struct slab *slab, void *object)
{
    struct slab_free *given = object;

    if (!given)
        return;
    given->next = slab->free;
    slab->free = given;
    slab->taken--;
}

void slab_close(struct slab *slab)
{
    struct slab_chunk *next;

    assert(slab->taken == 0);
    for (struct slab_chunk *chunk = slab->chunks; chunk; chunk = next) {
        next = chunk->next;
        munmap(chunk, chunk->bytes);
    }
    *slab = (struct slab){.size = slab->size};
}
