#include "upstream/resilience.h"

#include "base/clock.h"

/* ---- how much is under way ---- */

/* Exact over all threads: nobody enters beyond the bound, not even for a moment. */
static bool enter(atomic_uint *count, uint64_t most)
{
    unsigned before = atomic_load_explicit(count, memory_order_relaxed);

    while (before < most)
        if (atomic_compare_exchange_weak_explicit(count, &before, before + 1, memory_order_relaxed,
                                                  memory_order_relaxed))
            return true;
    return false;
}

static void leave(atomic_uint *count)
{
    atomic_fetch_sub_explicit(count, 1, memory_order_relaxed);
}

bool load_enter_request(struct load *load, const struct dp_resilience *resilience)
{
    return enter(&load->requests, resilience->requests);
}

void load_leave_request(struct load *load)
{
    leave(&load->requests);
}

bool load_enter_retry(struct load *load, const struct dp_resilience *resilience, uint64_t requests)
{
    uint64_t most = requests * resilience->budget / DP_SHARES;

    if (most < resilience->least_retries)
        most = resilience->least_retries;
    return enter(&load->retries, most);
}

void load_leave_retry(struct load *load)
{
    leave(&load->retries);
}

/* ---- the token bucket ---- */

/* Instead of tokens that somebody would have to put in, the moment at which the bucket will be full
 * again: each token moves it on by the time in which one comes back. */

static uint64_t token_ns(const struct dp_resilience *resilience)
{
    uint64_t per_ns = (uint64_t)resilience->rate_ms * NS_PER_MS;

    return (per_ns + resilience->rate_requests / 2) / resilience->rate_requests;
}

/* When the bucket is full again without one token more; UINT64_MAX: there is none. */
static uint64_t full_with_one_less(uint64_t full_ns, const struct dp_resilience *resilience,
                                   uint64_t now_ns)
{
    uint64_t one_ns = token_ns(resilience);

    full_ns = (full_ns > now_ns ? full_ns : now_ns) + one_ns;
    return full_ns <= now_ns + one_ns * resilience->rate_burst ? full_ns : UINT64_MAX;
}

bool load_take_token(struct load *load, const struct dp_resilience *resilience, uint64_t now_ns)
{
    uint64_t full_ns = atomic_load_explicit(&load->full_ns, memory_order_relaxed), next_ns;

    do {
        next_ns = full_with_one_less(full_ns, resilience, now_ns);
        if (next_ns == UINT64_MAX)
            return false;
    } while (!atomic_compare_exchange_weak_explicit(&load->full_ns, &full_ns, next_ns,
                                                    memory_order_relaxed, memory_order_relaxed));
    return true;
}

bool load_has_token(struct load *load, const struct dp_resilience *resilience, uint64_t now_ns)
{
    uint64_t full_ns = atomic_load_explicit(&load->full_ns, memory_order_relaxed);

    return full_with_one_less(full_ns, resilience, now_ns) != UINT64_MAX;
}

/* ---- retries ---- */

/* As Envoy: below 1, 3, 7 ... times the base, and never above the longest. */
uint32_t retry_backoff_ms(const struct dp_resilience *resilience, uint32_t number, uint64_t *random)
{
    uint64_t times = (UINT64_C(1) << (number < 32 ? number : 32)) - 1;
    uint64_t bound = resilience->backoff_ms * times;

    if (bound > resilience->longest_backoff_ms)
        bound = resilience->longest_backoff_ms;
    return random_below(random, (uint32_t)bound);
}
