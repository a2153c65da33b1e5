#include "l7/buffer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum {
    KEPT_BYTES = 1024 * 1024, /* of each size */
    /* Who wants more than a block leaves so much of what is left to others, whoever they are: a few
     * clients with large frames that do not come to an end have not everything. */
    SHARES = 8,
};

struct block {
    struct block *next; /* a spare one is linked by its own memory */
};

/* NULL: blocks of that size are not kept. */
static struct spare_blocks *spares_of(struct blocks *blocks, size_t size)
{
    return size > BLOCK_BYTES ? NULL : &blocks->spares[__builtin_ctzl(size / SMALL_BLOCK_BYTES)];
}

static uint8_t *take(struct blocks *blocks, size_t size)
{
    struct spare_blocks *spares = spares_of(blocks, size);
    struct block *block;

    if (blocks->used + size > blocks->most)
        return NULL;
    if (size > BLOCK_BYTES && size > (blocks->most - blocks->used) / SHARES)
        return NULL;
    if (spares && spares->first) {
        block = spares->first;
        spares->first = block->next;
        spares->count--;
    } else {
        block = malloc(size);
    }
    if (block)
        blocks->used += size;
    return (uint8_t *)block;
}

static void give_back(struct blocks *blocks, uint8_t *data, size_t size)
{
    struct spare_blocks *spares = spares_of(blocks, size);
    struct block *block = (void *)data;

    blocks->used -= size;
    if (!spares || spares->count >= KEPT_BYTES / size) {
        free(block);
        return;
    }
    block->next = spares->first;
    spares->first = block;
    spares->count++;
}

/* A small block, or a power of two of large ones. */
static size_t capacity_for(size_t size)
{
    size_t capacity = BLOCK_BYTES;

    if (size <= SMALL_BLOCK_BYTES)
        return SMALL_BLOCK_BYTES;
    while (capacity < size)
        capacity *= 2;
    return capacity;
}

static size_t tight_capacity_for(size_t size)
{
    size_t capacity = SMALL_BLOCK_BYTES;

    while (capacity < size)
        capacity *= 2;
    return capacity;
}

static uint8_t *make_room(struct blocks *blocks, struct buffer *buffer, size_t size,
                          size_t (*capacity_of)(size_t size))
{
    uint32_t held = buffer_held(buffer);
    size_t capacity;
    uint8_t *data;

    if (buffer->data && size <= buffer->capacity - buffer->end)
        return buffer->data + buffer->end;
    if (buffer->data && size <= buffer->capacity - held) {
        memmove(buffer->data, buffer->data + buffer->start, held);
    } else {
        if (size > UINT32_MAX / 4 - held)
            return NULL;
        capacity = capacity_of(held + size);
        data = take(blocks, capacity);
        if (!data)
            return NULL;
        if (buffer->data) {
            memcpy(data, buffer->data + buffer->start, held);
            give_back(blocks, buffer->data, buffer->capacity);
        }
        buffer->data = data;
        buffer->capacity = (uint32_t)capacity;
    }
    buffer->start = 0;
    buffer->end = held;
    return buffer->data + held;
}

uint8_t *buffer_room(struct blocks *blocks, struct buffer *buffer, size_t size)
{
    return make_room(blocks, buffer, size, capacity_for);
}

static bool put(struct buffer *buffer, uint8_t *to, const void *data, size_t size)
{
    if (!to)
        return false;
    memcpy(to, data, size);
    buffer->end += (uint32_t)size;
    return true;
}

bool buffer_add(struct blocks *blocks, struct buffer *buffer, const void *data, size_t size)
{
    return put(buffer, buffer_room(blocks, buffer, size), data, size);
}

bool buffer_add_tightly(struct blocks *blocks, struct buffer *buffer, const void *data, size_t size)
{
    return put(buffer, make_room(blocks, buffer, size, tight_capacity_for), data, size);
}

void buffer_drop(struct blocks *blocks, struct buffer *buffer, size_t size)
{
    assert(size <= buffer_held(buffer));
    buffer->start += (uint32_t)size;
    if (buffer->start == buffer->end)
        buffer_release(blocks, buffer);
}

void buffer_release(struct blocks *blocks, struct buffer *buffer)
{
    if (buffer->data)
        give_back(blocks, buffer->data, buffer->capacity);
    *buffer = (struct buffer){0};
}

static void free_spares(struct spare_blocks *spares)
{
    while (spares->first) {
        struct block *block = spares->first;

        spares->first = block->next;
        free(block);
    }
    spares->count = 0;
}

void blocks_close(struct blocks *blocks)
{
    assert(blocks->used == 0);
    for (size_t i = 0; i < BLOCK_SIZES; i++)
        free_spares(&blocks->spares[i]);
}
