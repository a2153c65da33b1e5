/* The latest records of one writer, which never waits for the one reader, nor that for the writer:
 * the oldest ones are overwritten, and the reader counts what it has missed. Where the oldest of a
 * full ring is, the writer may be about to write: the reader leaves it. */
#ifndef PYSIDECAR_BASE_RING_H
#define PYSIDECAR_BASE_RING_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

struct ring {
    _Atomic uint64_t *words; /* the reader copies what may be overwritten meanwhile */
    size_t record_words;
    uint64_t mask;            /* number of records that are kept, less 1 */
    _Atomic uint64_t written; /* number of all so far: says where the next one goes */
    uint64_t taken;           /* the reader's: the next one to take */
};

/* Keeps the latest `records` records, rounded up to a power of two. `record_size`: of one, in
 * bytes, a multiple of 8. 0 or -errno. */
int ring_create(struct ring *ring, size_t record_size, size_t records);
/* Also of one that was never created, but is zero. */
void ring_destroy(struct ring *ring);
/* Whoever sees the record counted in ring_written() can take it. */
void ring_write(struct ring *ring, const void *record);
uint64_t ring_written(const struct ring *ring);
/* What was written so far is not to be taken. */
void ring_skip(struct ring *ring);
/* Stores the records that were not taken yet, `max` at most. Returns how many; adds to `missed`
 * those that were overwritten. */
size_t ring_take(struct ring *ring, void *records, size_t max, uint64_t *missed);

#endif
