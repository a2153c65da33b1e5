/* Random numbers for choices, not for secrets: splitmix64 (Steele, Lea and Flood, 2014). Any state
 * will do as a seed; a thread has its own. */
#ifndef PYSIDECAR_BASE_RANDOM_H
#define PYSIDECAR_BASE_RANDOM_H

#include <stdint.h>

static inline uint64_t random_mix(uint64_t value)
{
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    return value ^ value >> 31;
}

static inline uint64_t random_next(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15u;
    return random_mix(*state);
}

/* Less than `bound`, which it favours by less than one in 2^32 / bound; 0 for 0. */
static inline uint32_t random_below(uint64_t *state, uint32_t bound)
{
    return (uint32_t)((random_next(state) >> 32) * bound >> 32);
}

#endif
