/* The latest records of one writer, for one reader. Neither waits for the other: the writer
 * overwrites the oldest records, and the reader counts those that it has missed. The reader leaves
 * the oldest record of a full ring, where the writer may be about to write. */
#ifndef PYSIDECAR_BASE_RING_H
#define PYSIDECAR_BASE_RING_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

struct ring {
    _Atomic uint64_t *words; /* atomic: the reader copies what may be overwritten meanwhile */
    size_t record_words;
    uint64_t mask;            /* number of records that are kept, minus 1 */
    _Atomic uint64_t written; /* number of records so far; says where the next one goes */
    uint64_t taken;           /* the reader's: the next one to take */
};

/* Keeps the latest `records` records, rounded up to a power of two. `record_size` is in bytes, a
 * multiple of 8. 0 or -errno. */
int ring_create(struct ring *ring, size_t record_size, size_t records);
/* Also if it is zeroed and was never created. */
void ring_destroy(struct ring *ring);
/* Whoever sees the record counted in ring_written() can take it. */
void ring_write(struct ring *ring, const void *record);
uint64_t ring_written(const struct ring *ring);
/* Skips what was written so far. */
void ring_skip(struct ring *ring);
/* Stores records that were not taken yet, at most `max`. Returns how many; adds the number of
 * overwritten ones to `*missed`. */
size_t ring_take(struct ring *ring, void *records, size_t max, uint64_t *missed);
/* Stores the latest records, at most `max`, taken or not, the oldest first. Returns how many. For
 * any thread. */
size_t ring_latest(const struct ring *ring, void *records, size_t max);

#endif
