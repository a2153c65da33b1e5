/* What a worker keeps of the requests that ended: sums, the latest ones, the latest that failed,
 * and the slowest ones of the last minutes. The worker writes, the control thread reads, and
 * neither waits for the other.
 */
#ifndef PYSIDECAR_API_REQUESTS_H
#define PYSIDECAR_API_REQUESTS_H

#include "api/dataplane.h"
#include "base/ring.h"
#include "upstream/service.h"

enum {
    REQUEST_WORDS = sizeof(struct dp_request) / sizeof(uint64_t),
    RECENT_REQUESTS = 1024,
    FAILED_REQUESTS = 256,
    SLOW_MINUTES = 6,      /* the current one, and those that are over */
    SLOW_OF_A_MINUTE = 32, /* that are kept */
    SLOW_REQUESTS = SLOW_MINUTES * SLOW_OF_A_MINUTE,
};

#define NS_PER_MINUTE UINT64_C(60000000000)
#define SLOW_FOR_NS ((SLOW_MINUTES - 1) * NS_PER_MINUTE) /* longer than that they are not shown */

/* A request that is replaced by others, under the reader's eyes. */
struct slow {
    counter version; /* odd while it is being replaced; 0: there is none */
    counter words[REQUEST_WORDS];
};

/* The slowest requests that ended in one minute. */
struct slow_minute {
    uint64_t minute; /* since 1970 */
    unsigned count;
    unsigned fastest; /* once all are there: which is the next to be replaced */
    uint64_t durations[SLOW_OF_A_MINUTE];
    struct slow slow[SLOW_OF_A_MINUTE];
};

/* A worker's. */
struct requests {
    struct tally unserved; /* of those that reached no service */
    struct ring recent, failed;
    struct slow_minute *minutes; /* by minute, modulo SLOW_MINUTES */
};

/* 0 or -errno. Also after a failure it is to be destroyed. */
int requests_create(struct requests *requests);
/* Also if it is zeroed and was never created. */
void requests_destroy(struct requests *requests);

/* Which of the flags that are failures it has: there is at most one. */
enum dp_flag failure_of(uint32_t flags);
/* See session_handler. */
void requests_ended(struct requests *requests, unsigned worker, const struct dp_request *request,
                    struct standing *standing, struct endpoint *endpoint);

/* Only counts it, for its service and its endpoint. */
void requests_count(unsigned worker, const struct dp_request *request, struct standing *standing,
                    struct endpoint *endpoint);

/* ---- the control thread's side ---- */

/* Stores the latest, or the latest that failed, at most `max`, the oldest first. Returns how many.
 */
size_t requests_recent(const struct requests *requests, bool failed, struct dp_request *recent,
                       size_t max);
/* Stores the slowest since that moment (CLOCK_REALTIME), at most SLOW_REQUESTS, in any
 * order. Returns how many. */
size_t requests_slowest(const struct requests *requests, uint64_t since_ns,
                        struct dp_request *slowest);
void tally_add(const struct tally *tally, struct dp_tally *sum);

#endif
