/* Bytes that wait: read and not decoded, or written and not sent. What is empty holds no memory.
 * Memory comes in blocks of a few sizes, of which a worker keeps some that nobody uses. */
#ifndef PYSIDECAR_L7_BUFFER_H
#define PYSIDECAR_L7_BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    BLOCK_BYTES = 16 * 1024,
    /* For those that begin with little, as a short body on one of many streams: so all of them fit
     * into the processor's cache. */
    SMALL_BLOCK_BYTES = 512,
    BLOCK_SIZES = 6, /* powers of two, from the one to the other */
};

struct block;

/* That nobody uses, all of one size. */
struct spare_blocks {
    struct block *first;
    unsigned count;
};

/* A worker's. Begin with zeros, then set `most`. */
struct blocks {
    struct spare_blocks spares[BLOCK_SIZES];
    size_t used; /* bytes of all buffers */
    size_t most; /* that they may have */
};

struct buffer {
    uint8_t *data; /* NULL: none */
    uint32_t start, end, capacity;
};

static inline uint32_t buffer_held(const struct buffer *buffer)
{
    return buffer->end - buffer->start;
}

/* Makes room for `size` more bytes behind those that it holds, where the caller may write them and
 * then add to buffer->end. NULL when out of memory, or where the worker's buffers have too much. */
uint8_t *buffer_room(struct blocks *blocks, struct buffer *buffer, size_t size);
/* False as buffer_room. */
bool buffer_add(struct blocks *blocks, struct buffer *buffer, const void *data, size_t size);
/* Likewise, in the smallest block that has room: for what may wait for long. */
bool buffer_add_tightly(struct blocks *blocks, struct buffer *buffer, const void *data,
                        size_t size);
/* The first `size` bytes are done with. */
void buffer_drop(struct blocks *blocks, struct buffer *buffer, size_t size);
/* All of them are. */
void buffer_release(struct blocks *blocks, struct buffer *buffer);
/* With no buffer in use any more. */
void blocks_close(struct blocks *blocks);

#endif
