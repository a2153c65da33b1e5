#include "base/ring.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

int ring_create(struct ring *ring, size_t record_size, size_t records)
{
    size_t capacity = 1;

    assert(record_size % sizeof(uint64_t) == 0);
    while (capacity < records)
        capacity *= 2;
    memset(ring, 0, sizeof *ring);
    ring->record_words = record_size / sizeof(uint64_t);
    ring->mask = capacity - 1;
    ring->words = calloc(capacity, record_size);
    return ring->words ? 0 : -ENOMEM;
}

void ring_destroy(struct ring *ring)
{
    free(ring->words);
    ring->words = NULL;
}

static _Atomic uint64_t *slot_of(const struct ring *ring, uint64_t number)
{
    return &ring->words[(number & ring->mask) * ring->record_words];
}

/* The order of stores tells the reader that it was overtaken: it sees no word of a later record
 * without the number of those before it. */
void ring_write(struct ring *ring, const void *record)
{
    uint64_t number = atomic_load_explicit(&ring->written, memory_order_relaxed);
    _Atomic uint64_t *slot = slot_of(ring, number);

    for (size_t i = 0; i < ring->record_words; i++) {
        uint64_t word;

        memcpy(&word, (const char *)record + i * sizeof word, sizeof word);
        atomic_store_explicit(&slot[i], word, memory_order_release);
    }
    atomic_store_explicit(&ring->written, number + 1, memory_order_release);
}

uint64_t ring_written(const struct ring *ring)
{
    return atomic_load_explicit(&ring->written, memory_order_acquire);
}

void ring_skip(struct ring *ring)
{
    ring->taken = ring_written(ring);
}

/* False if the record was, or may have been, overwritten meanwhile. */
static bool read_record(const struct ring *ring, uint64_t number, void *record)
{
    const _Atomic uint64_t *slot = slot_of(ring, number);

    for (size_t i = 0; i < ring->record_words; i++) {
        uint64_t word = atomic_load_explicit(&slot[i], memory_order_acquire);

        memcpy((char *)record + i * sizeof word, &word, sizeof word);
    }
    return atomic_load_explicit(&ring->written, memory_order_relaxed) - number <= ring->mask;
}

size_t ring_take(struct ring *ring, void *records, size_t max, uint64_t *missed)
{
    size_t size = ring->record_words * sizeof(uint64_t), stored = 0;
    uint64_t written = ring_written(ring);

    if (written - ring->taken > ring->mask + 1) {
        *missed += written - ring->taken - ring->mask - 1;
        ring->taken = written - ring->mask - 1;
    }
    for (; stored < max && ring->taken < written; ring->taken++)
        if (read_record(ring, ring->taken, (char *)records + stored * size))
            stored++;
        else
            ++*missed;
    return stored;
}

size_t ring_latest(const struct ring *ring, void *records, size_t max)
{
    size_t size = ring->record_words * sizeof(uint64_t), stored = 0;
    uint64_t written = ring_written(ring), count = written;

    if (count > ring->mask)
        count = ring->mask; /* the writer may be about to write where the oldest one is */
    if (count > max)
        count = max;
    for (uint64_t number = written - count; number < written; number++)
        if (read_record(ring, number, (char *)records + stored * size))
            stored++;
    return stored;
}
