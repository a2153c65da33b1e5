/* What a service does against failures and overload: when a request is sent again, and how much of
 * a service may be under way. Decisions and counts; whoever serves requests carries them out. */
#ifndef PYSIDECAR_UPSTREAM_RESILIENCE_H
#define PYSIDECAR_UPSTREAM_RESILIENCE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/random.h"
#include "base/terms.h"

/* What is under way of a service, of all workers together, as far as it is bounded. Begin with
 * zeros. It outlives changes of the bounds. */
struct load {
    atomic_uint requests;
    atomic_uint retries;      /* that were sent, or wait to be */
    _Atomic uint64_t full_ns; /* CLOCK_MONOTONIC: when the token bucket is full again */
};

/* One more request; false: there are as many as there may be. */
bool load_enter_request(struct load *load, const struct dp_resilience *resilience);
void load_leave_request(struct load *load);
/* One more retry, while so many requests of the service are under way. */
bool load_enter_retry(struct load *load, const struct dp_resilience *resilience, uint64_t requests);
void load_leave_retry(struct load *load);
/* Takes a token; false: there is none now. */
bool load_take_token(struct load *load, const struct dp_resilience *resilience, uint64_t now_ns);

/* Whether there is one, without taking it. */
bool load_has_token(struct load *load, const struct dp_resilience *resilience, uint64_t now_ns);

/* Whether something of the request may have been done by then. */
static inline bool retry_is_risky(enum dp_retry why)
{
    return why == DP_RETRY_RESET || why == DP_RETRY_ATTEMPT_TIMEOUT;
}

/* Whether a request is sent again after that, if there is nothing else against it. */
static inline bool retry_is_for(const struct dp_resilience *resilience, enum dp_retry why,
                                bool idempotent)
{
    return resilience->retry_on >> why & 1 && (idempotent || !retry_is_risky(why));
}

/* Likewise after an answer with this status. */
static inline bool retry_is_for_status(const struct dp_resilience *resilience, uint32_t status,
                                       bool idempotent)
{
    return idempotent && status < DP_STATUSES && resilience->statuses[status / 8] >> status % 8 & 1;
}

/* How long the retry with that number (the first one: 1) waits: at random, so that retries of many
 * requests that failed together do not come together. */
uint32_t retry_backoff_ms(const struct dp_resilience *resilience, uint32_t number,
                          uint64_t *random);

/* Whether this is one of `share` DP_SHARES. */
static inline bool share_is_met(uint32_t share, uint64_t *random)
{
    return share > 0 && random_below(random, DP_SHARES) < share;
}

#endif
