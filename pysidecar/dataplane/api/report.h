/* What workers tell the control thread of their connections: sums for the metrics, the latest
 * records, and the lines of the access log. (Of requests: the lines; see api/requests.h.)
 *
 * Each worker writes its own report and reads nobody else's; the control thread reads all of them.
 * Neither waits for the other. What the control thread does not fetch in time is bounded: the
 * oldest records are overwritten; lines that have no room are dropped, and counted.
 */
#ifndef PYSIDECAR_DATAPLANE_REPORT_H
#define PYSIDECAR_DATAPLANE_REPORT_H

#include <stdatomic.h>
#include <stdbool.h>

#include "api/dataplane.h"
#include "base/counter.h"
#include "base/ring.h"

/* As struct dp_tallies, of one worker. */
struct tallies {
    counter open[DP_DIRECTIONS][DP_TRANSPORTS][DP_ACTIONS];
    counter closed[DP_DIRECTIONS][DP_TRANSPORTS][DP_ACTIONS];
    counter ends[DP_ENDS];
    counter durations[DP_DURATION_BOUNDS + 1];
    counter duration_us;
    counter lines_dropped;
};

struct log_chunk;

/* What the reports of all workers share. */
struct reports {
    _Atomic(const struct dp_log_texts *) texts; /* once there is a kind */
    atomic_uint kinds;                          /* of lines that are written: enum dp_log */
    atomic_uint chunks;                         /* of lines, in all reports */
    atomic_bool announced;                      /* the control thread knows that there is news */
    int event;                                  /* eventfd */
};

/* One worker's. */
struct report {
    struct reports *shared;
    struct tallies tallies;
    bool news; /* not announced yet */

    struct ring records; /* of those that closed */

    /* Lines, in a list of chunks: the worker appends to the newest one. */
    _Atomic(struct log_chunk *) first;
    _Atomic(struct log_chunk *) *link; /* where the next chunk is linked */
    struct log_chunk *newest;
    struct log_chunk *oldest; /* the control thread's; NULL until it has seen the first */
    _Atomic(struct log_chunk *) spare;
};

/* Keeps the latest `records` records, rounded up to a power of two. 0 or -errno. */
int report_create(struct report *report, struct reports *shared, size_t records);
/* Also of one that was never created, but is zero. */
void report_destroy(struct report *report);

/* A connection was opened; its action is DP_RELAY until report_action says otherwise. */
void report_opened(struct report *report, uint32_t direction, uint32_t transport);
void report_action(struct report *report, uint32_t direction, uint32_t transport,
                   enum dp_action before, enum dp_action now);
/* A connection ended. Whoever sees it counted in report_count_closed can take its record. */
void report_closed(struct report *report, const struct dp_record *record);
/* Writes the line of a request, if there are such lines. */
void report_request(struct report *report, const struct dp_request *request);
/* Wakes the control thread if there is news since the last call. */
void report_announce(struct report *report);

/* ---- the control thread's side ---- */

/* The next announcement writes to the event again: before looking for what is there. */
void reports_acknowledge(struct reports *shared);
uint64_t report_count_closed(const struct report *report);
/* Stores the records that were not taken yet, `max` at most. Returns how many. */
size_t report_take(struct report *report, struct dp_record *records, size_t max);
/* Moves whole lines to the buffer, of `size` bytes. Returns how many bytes. */
size_t report_take_lines(struct report *report, char *buffer, size_t size);
void report_add(const struct report *report, struct dp_tallies *sum);

#endif
