#include "api/requests.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "upstream/endpoint.h"

_Static_assert(sizeof(struct dp_request) % sizeof(uint64_t) == 0, "requests are copied in words");
_Static_assert(sizeof(struct tally) == sizeof(struct dp_tally), "they are added word by word");
_Static_assert((int)TALLY_BOUNDS == (int)DP_REQUEST_BOUNDS, "they are the same bounds");

#define MICROSECONDS UINT64_C(1000)
#define MILLISECONDS UINT64_C(1000000)
const uint64_t dp_request_bounds_ns[DP_REQUEST_BOUNDS] = {
    100 * MICROSECONDS,  250 * MICROSECONDS,  500 * MICROSECONDS,   MILLISECONDS,
    2500 * MICROSECONDS, 5 * MILLISECONDS,    10 * MILLISECONDS,    25 * MILLISECONDS,
    50 * MILLISECONDS,   100 * MILLISECONDS,  250 * MILLISECONDS,   500 * MILLISECONDS,
    1000 * MILLISECONDS, 2500 * MILLISECONDS, 10000 * MILLISECONDS, 60000 * MILLISECONDS,
};

int requests_create(struct requests *requests)
{
    requests->minutes = calloc(SLOW_MINUTES, sizeof *requests->minutes);
    if (!requests->minutes)
        return -ENOMEM;
    if (ring_create(&requests->recent, sizeof(struct dp_request), RECENT_REQUESTS) < 0)
        return -ENOMEM;
    return ring_create(&requests->failed, sizeof(struct dp_request), FAILED_REQUESTS);
}

void requests_destroy(struct requests *requests)
{
    free(requests->minutes);
    requests->minutes = NULL;
    ring_destroy(&requests->recent);
    ring_destroy(&requests->failed);
}

/* ---- sums ---- */

enum dp_flag failure_of(uint32_t flags)
{
    flags &= (2u << DP_FLAG_DOWNSTREAM_CLOSED) - (1u << DP_FLAG_NO_ROUTE);
    return flags ? (enum dp_flag)__builtin_ctz(flags) : DP_FLAG_NONE;
}

static bool has_failed(const struct dp_request *request)
{
    return failure_of(request->flags) != DP_FLAG_NONE ||
           request->flags & 1u << DP_FLAG_SERVICE_ERROR || request->status_class == 5;
}

static void count(struct tally *tally, const struct dp_request *request)
{
    unsigned class = request->status_class, bucket = 0;

    assert(class < DP_STATUS_CLASSES && (uint64_t)request->flags >> DP_FLAGS == 0);
    while (bucket < TALLY_BOUNDS && request->duration_ns > dp_request_bounds_ns[bucket])
        bucket++;
    counter_add(&tally->durations[class][bucket], 1);
    counter_add(&tally->duration_us[class], (int64_t)((request->duration_ns + 500) / 1000));
    counter_add(&tally->statuses[class], 1);
    counter_add(&tally->attempts, request->attempts);
    counter_add(&tally->bytes[0], (int64_t)request->bytes_sent);
    counter_add(&tally->bytes[1], (int64_t)request->bytes_received);
    if (has_failed(request))
        counter_add(&tally->failures, 1);
    for (uint32_t flags = request->flags; flags; flags &= flags - 1)
        counter_add(&tally->flags[__builtin_ctz(flags)], 1);
}

void tally_add(const struct tally *tally, struct dp_tally *sum)
{
    const counter *counters = (const counter *)tally;
    uint64_t *sums = (uint64_t *)sum;

    for (size_t i = 0; i < sizeof *sum / sizeof *sums; i++)
        sums[i] += counter_read(&counters[i]);
}

/* ---- the slowest ---- */

/* As in base/ring.c: who sees a word of the new request sees that it is being replaced. */
static void replace(struct slow *slow, const struct dp_request *request)
{
    uint64_t version = counter_read(&slow->version);

    atomic_store_explicit(&slow->version, version + 1, memory_order_relaxed);
    for (size_t i = 0; i < REQUEST_WORDS; i++) {
        uint64_t word;

        memcpy(&word, (const char *)request + i * sizeof word, sizeof word);
        atomic_store_explicit(&slow->words[i], word, memory_order_release);
    }
    atomic_store_explicit(&slow->version, version + 2, memory_order_release);
}

/* False if there is none, or not any more: it is being replaced by a slower one. */
static bool read_slow(const struct slow *slow, struct dp_request *request)
{
    uint64_t version = atomic_load_explicit(&slow->version, memory_order_acquire);

    if (version == 0 || version % 2 == 1)
        return false;
    for (size_t i = 0; i < REQUEST_WORDS; i++) {
        uint64_t word = atomic_load_explicit(&slow->words[i], memory_order_acquire);

        memcpy((char *)request + i * sizeof word, &word, sizeof word);
    }
    return counter_read(&slow->version) == version;
}

static void find_fastest(struct slow_minute *minute)
{
    minute->fastest = 0;
    for (unsigned i = 1; i < SLOW_OF_A_MINUTE; i++)
        if (minute->durations[i] < minute->durations[minute->fastest])
            minute->fastest = i;
}

static void keep_if_slow(struct requests *requests, const struct dp_request *request)
{
    uint64_t number = (request->began_ns + request->duration_ns) / NS_PER_MINUTE;
    struct slow_minute *minute = &requests->minutes[number % SLOW_MINUTES];
    unsigned index;

    if (minute->minute != number) {
        minute->minute = number;
        minute->count = 0;
    }
    if (minute->count < SLOW_OF_A_MINUTE)
        index = minute->count++;
    else if (request->duration_ns > minute->durations[minute->fastest])
        index = minute->fastest;
    else
        return;
    minute->durations[index] = request->duration_ns;
    replace(&minute->slow[index], request);
    if (minute->count == SLOW_OF_A_MINUTE)
        find_fastest(minute);
}

size_t requests_slowest(const struct requests *requests, uint64_t since_ns,
                        struct dp_request *slowest)
{
    size_t stored = 0;

    for (size_t i = 0; i < SLOW_MINUTES; i++)
        for (size_t j = 0; j < SLOW_OF_A_MINUTE; j++) {
            struct dp_request *request = &slowest[stored];

            if (read_slow(&requests->minutes[i].slow[j], request) &&
                request->began_ns + request->duration_ns >= since_ns)
                stored++;
        }
    return stored;
}

/* ---- all of it ---- */

void requests_count(unsigned worker, const struct dp_request *request, struct standing *standing,
                    struct endpoint *endpoint)
{
    struct tally *tally = endpoint ? endpoint_tally(endpoint, worker) : NULL;

    if (standing)
        count(&standing->tallies[worker], request);
    if (tally)
        count(tally, request);
}

void requests_ended(struct requests *requests, unsigned worker, const struct dp_request *request,
                    struct standing *standing, struct endpoint *endpoint)
{
    if (!standing)
        count(&requests->unserved, request);
    requests_count(worker, request, standing, endpoint);
    ring_write(&requests->recent, request);
    if (has_failed(request))
        ring_write(&requests->failed, request);
    if (!(request->flags & 1u << DP_FLAG_UPGRADED))
        keep_if_slow(requests, request);
}

size_t requests_recent(const struct requests *requests, bool failed, struct dp_request *recent,
                       size_t max)
{
    return ring_latest(failed ? &requests->failed : &requests->recent, recent, max);
}
