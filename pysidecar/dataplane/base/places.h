/* Numbers at places on a circle of 2^32, in order: which one is next from any place is found in a
 * few steps, however many there are. */
#ifndef PYSIDECAR_BASE_PLACES_H
#define PYSIDECAR_BASE_PLACES_H

#include <stdbool.h>
#include <stdint.h>

struct places {
    uint64_t *each;   /* see place_of: sorted */
    uint32_t *starts; /* by the uppermost bits of the place: the first one there */
    uint32_t count;
    unsigned shift; /* the other bits */
};

static inline uint64_t place_of(uint32_t place, uint32_t number)
{
    return (uint64_t)place << 32 | number;
}

static inline uint32_t places_at(const struct places *places, uint32_t index)
{
    return (uint32_t)places->each[index];
}

/* Of these, in any order. False when out of memory. */
bool places_set(struct places *places, const uint64_t *each, uint32_t count);
/* All zero is allowed. */
void places_free(struct places *places);
/* The index of the first number there or behind it; `count`: there is none up to the end. */
uint32_t places_from(const struct places *places, uint32_t place);

#endif
