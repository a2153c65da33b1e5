#include "upstream/latency.h"

enum {
    MEMORY_MS = 10 * 1000,
    UNKNOWN_US = 1000 * 1000, /* of one that has not answered yet, and has requests */
};

/* Both in one word, so that whoever reads it finds what belongs together. Time goes round in 49
 * days: one that had no answer for half of that looks as if it had one just now. */
static uint64_t pack(uint64_t us, uint64_t now_ms)
{
    return (us < UINT32_MAX ? us : UINT32_MAX) << 32 | (uint32_t)now_ms;
}

/* Of what was, at most half of the time round. */
static uint64_t age_ms(uint64_t latency, uint64_t now_ms)
{
    uint32_t age = (uint32_t)now_ms - (uint32_t)latency;

    return age > INT32_MAX ? 0 : age; /* another worker's turn began later */
}

static uint64_t faded(uint64_t latency, uint64_t now_ms)
{
    return (latency >> 32) * MEMORY_MS / (MEMORY_MS + age_ms(latency, now_ms));
}

void latency_add(struct endpoint *endpoint, uint64_t ns, bool failed, uint64_t now_ms)
{
    uint64_t before = atomic_load_explicit(&endpoint->latency, memory_order_relaxed);
    uint64_t us = ns / 1000 + 1, old_us = before >> 32, age = age_ms(before, now_ms);

    if (failed && us < old_us)
        us = old_us;
    if (us < old_us) /* as if a millisecond at least lay between two */
        us = (old_us * MEMORY_MS + us * (age + 1)) / (MEMORY_MS + age + 1);
    /* Of two workers at once one may get lost: it is an average. */
    atomic_store_explicit(&endpoint->latency, pack(us, now_ms), memory_order_relaxed);
}

uint64_t latency_cost(const struct endpoint *endpoint, uint64_t now_ms)
{
    uint64_t latency = atomic_load_explicit(&endpoint->latency, memory_order_relaxed);
    uint64_t active = atomic_load_explicit(&endpoint->active, memory_order_relaxed);

    if (latency == 0) /* one request tells */
        return active * UNKNOWN_US;
    return (faded(latency, now_ms) + 1) * (active + 1);
}
