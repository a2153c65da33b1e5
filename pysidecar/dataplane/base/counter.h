/* Sums that one thread writes, and any reads. */
#ifndef PYSIDECAR_BASE_COUNTER_H
#define PYSIDECAR_BASE_COUNTER_H

#include <stdatomic.h>
#include <stdint.h>

typedef _Atomic uint64_t counter;

static inline uint64_t counter_read(const counter *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

/* With a single writer a plain addition does: no locked instruction. */
static inline void counter_add(counter *counter, int64_t change)
{
    atomic_store_explicit(counter, counter_read(counter) + (uint64_t)change, memory_order_relaxed);
}

#endif
