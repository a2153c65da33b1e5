#include "l7/http2_memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __has_feature /* clang's way to say it */
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__
#endif
#endif

enum {
    STEP = 64, /* from one size to the next */
    LARGEST = HTTP2_PIECE_SIZES * STEP,
#ifdef __SANITIZE_ADDRESS__
    KEPT_BYTES = 0, /* so that what is used after it was freed is seen */
#else
    KEPT_BYTES = 512 * 1024,
#endif
};

/* What stands before each piece. */
struct http2_piece {
    size_t size;              /* that it has room for */
    struct http2_piece *next; /* of those that are free */
};

_Static_assert(sizeof(struct http2_piece) % _Alignof(max_align_t) == 0, "pieces are aligned");

static struct http2_piece **free_of(struct http2_memory *memory, size_t size)
{
    return &memory->free[size / STEP - 1];
}

void *http2_memory_take(size_t size, void *user)
{
    struct http2_memory *memory = user;
    size_t room = size == 0 ? STEP : (size + STEP - 1) / STEP * STEP;
    struct http2_piece *piece;

    if (size > SIZE_MAX / 2)
        return NULL;
    if (room <= LARGEST && (piece = *free_of(memory, room))) {
        *free_of(memory, room) = piece->next;
        memory->kept -= room;
        return piece + 1;
    }
    piece = malloc(sizeof *piece + room);
    if (!piece)
        return NULL;
    piece->size = room;
    return piece + 1;
}

void http2_memory_give(void *data, void *user)
{
    struct http2_memory *memory = user;
    struct http2_piece *piece = data;

    if (!data)
        return;
    piece--;
    if (piece->size > LARGEST || memory->kept + piece->size > KEPT_BYTES) {
        free(piece);
        return;
    }
    piece->next = *free_of(memory, piece->size);
    *free_of(memory, piece->size) = piece;
    memory->kept += piece->size;
}

void *http2_memory_take_zeros(size_t count, size_t size, void *memory)
{
    void *data =
        size > 0 && count > SIZE_MAX / size ? NULL : http2_memory_take(count * size, memory);

    if (data)
        memset(data, 0, count * size);
    return data;
}

void *http2_memory_resize(void *data, size_t size, void *memory)
{
    const struct http2_piece *piece = data;
    void *other;

    if (data && size <= piece[-1].size)
        return data;
    other = http2_memory_take(size, memory);
    if (other && data) {
        memcpy(other, data, piece[-1].size);
        http2_memory_give(data, memory);
    }
    return other;
}

void http2_memory_close(struct http2_memory *memory)
{
    for (size_t i = 0; i < HTTP2_PIECE_SIZES; i++) {
        while (memory->free[i]) {
            struct http2_piece *piece = memory->free[i];

            memory->free[i] = piece->next;
            free(piece);
        }
    }
    memory->kept = 0;
}
