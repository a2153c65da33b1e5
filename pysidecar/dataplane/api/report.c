#include "api/report.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    CHUNK_BYTES = 64 * 1024, /* of lines */
    MOST_CHUNKS = 512,       /* of all workers: 32 MiB, some 70,000 lines */
};

_Static_assert(sizeof(struct dp_record) % sizeof(uint64_t) == 0, "records are copied in words");
_Static_assert(sizeof(struct tallies) == sizeof(struct dp_tallies), "they are added word by word");
_Static_assert((int)CHUNK_BYTES <= (int)DP_LOG_BLOCK_BYTES, "a chunk fits the reader's buffer");

struct log_chunk {
    _Atomic(struct log_chunk *) next; /* set when nothing more comes into this one */
    atomic_size_t filled;
    size_t taken; /* the control thread's */
    char lines[CHUNK_BYTES];
};

#define SECONDS UINT64_C(1000000000)
const uint64_t dp_duration_bounds_ns[DP_DURATION_BOUNDS] = {
    SECONDS / 1000, SECONDS / 200, SECONDS / 40,  SECONDS / 10,   SECONDS / 2,     5 * SECONDS / 2,
    10 * SECONDS,   60 * SECONDS,  600 * SECONDS, 3600 * SECONDS, 86400 * SECONDS,
};

int report_create(struct report *report, struct reports *shared, size_t records)
{
    report->shared = shared;
    report->link = &report->first;
    return ring_create(&report->records, sizeof(struct dp_record), records);
}

void report_destroy(struct report *report)
{
    struct log_chunk *chunk = report->oldest ? report->oldest : atomic_load(&report->first);

    while (chunk) {
        struct log_chunk *next = atomic_load(&chunk->next);

        free(chunk);
        chunk = next;
    }
    free(atomic_load(&report->spare));
    ring_destroy(&report->records);
}

/* ---- sums ---- */

void report_opened(struct report *report, uint32_t direction, uint32_t transport)
{
    counter_add(&report->tallies.open[direction][transport][DP_RELAY], 1);
}

void report_action(struct report *report, uint32_t direction, uint32_t transport,
                   enum dp_action before, enum dp_action now)
{
    counter(*open)[DP_ACTIONS] = &report->tallies.open[direction][transport];

    /* In this order: who counts all meanwhile counts one too many rather than miss it. */
    counter_add(&(*open)[now], 1);
    atomic_store_explicit(&(*open)[before], counter_read(&(*open)[before]) - 1,
                          memory_order_release);
}

static void count_closed(struct tallies *tallies, const struct dp_record *record)
{
    size_t bucket = 0;

    while (bucket < DP_DURATION_BOUNDS && record->duration_ns > dp_duration_bounds_ns[bucket])
        bucket++;
    counter_add(&tallies->durations[bucket], 1);
    counter_add(&tallies->duration_us, (int64_t)((record->duration_ns + 500) / 1000));
    counter_add(&tallies->ends[record->end], 1);
    counter_add(&tallies->closed[record->direction][record->transport][record->action], 1);
    counter_add(&tallies->open[record->direction][record->transport][record->action], -1);
}

void report_add(const struct report *report, struct dp_tallies *sum)
{
    const counter *tallies = (const counter *)&report->tallies;
    uint64_t *sums = (uint64_t *)sum;

    for (size_t i = 0; i < sizeof *sum / sizeof *sums; i++)
        sums[i] += atomic_load_explicit(&tallies[i], memory_order_acquire);
}

/* ---- records ---- */

uint64_t report_count_closed(const struct report *report)
{
    return ring_written(&report->records);
}

size_t report_take(struct report *report, struct dp_record *records, size_t max)
{
    uint64_t missed = 0; /* they are in the sums */

    return ring_take(&report->records, records, max, &missed);
}

/* ---- lines ---- */

static struct log_chunk *new_chunk(struct report *report)
{
    struct reports *shared = report->shared;
    struct log_chunk *chunk;

    if (atomic_fetch_add_explicit(&shared->chunks, 1, memory_order_relaxed) >= MOST_CHUNKS) {
        atomic_fetch_sub_explicit(&shared->chunks, 1, memory_order_relaxed);
        return NULL;
    }
    chunk = atomic_exchange_explicit(&report->spare, NULL, memory_order_acquire);
    if (!chunk)
        chunk = malloc(sizeof *chunk);
    if (!chunk) {
        atomic_fetch_sub_explicit(&shared->chunks, 1, memory_order_relaxed);
        return NULL;
    }
    atomic_init(&chunk->next, NULL);
    atomic_init(&chunk->filled, 0);
    chunk->taken = 0;
    return chunk;
}

static void free_chunk(struct report *report, struct log_chunk *chunk)
{
    atomic_fetch_sub_explicit(&report->shared->chunks, 1, memory_order_relaxed);
    free(atomic_exchange_explicit(&report->spare, chunk, memory_order_acq_rel));
}

/* The chunk with room for a line, or NULL: the control thread is behind, or we are out of memory.
 */
static struct log_chunk *chunk_with_room(struct report *report)
{
    struct log_chunk *chunk = report->newest;

    if (chunk && atomic_load_explicit(&chunk->filled, memory_order_relaxed) <=
                     CHUNK_BYTES - DP_LOG_LINE_BYTES)
        return chunk;
    chunk = new_chunk(report);
    if (!chunk)
        return NULL;
    atomic_store_explicit(report->link, chunk, memory_order_release);
    report->link = &chunk->next;
    report->newest = chunk;
    return chunk;
}

/* Where a line may be written; NULL: there is no room, and it is dropped. */
static char *begin_line(struct report *report)
{
    struct log_chunk *chunk = chunk_with_room(report);

    if (!chunk) {
        counter_add(&report->tallies.lines_dropped, 1);
        return NULL;
    }
    return chunk->lines + atomic_load_explicit(&chunk->filled, memory_order_relaxed);
}

static void end_line(struct report *report, size_t size)
{
    atomic_size_t *filled = &report->newest->filled;

    atomic_store_explicit(filled, atomic_load_explicit(filled, memory_order_relaxed) + size,
                          memory_order_release);
    report->news = true;
}

/* NULL: there are no lines of that kind. */
static const struct dp_log_texts *texts_for(struct reports *reports, enum dp_log kind)
{
    if (!(atomic_load_explicit(&reports->kinds, memory_order_acquire) & kind))
        return NULL;
    return atomic_load_explicit(&reports->texts, memory_order_acquire);
}

void report_request(struct report *report, const struct dp_request *request)
{
    const struct dp_log_texts *texts = texts_for(report->shared, DP_LOG_REQUESTS);
    char *line = texts ? begin_line(report) : NULL;

    if (line)
        end_line(report, dp_request_line(texts, request,
                                         texts_for(report->shared, DP_LOG_QUERIES) != NULL, line));
}

size_t report_take_lines(struct report *report, char *buffer, size_t size)
{
    size_t stored = 0;

    if (!report->oldest)
        report->oldest = atomic_load_explicit(&report->first, memory_order_acquire);
    while (report->oldest) {
        struct log_chunk *chunk = report->oldest;
        /* In this order: once there is a next one, this one is complete. */
        struct log_chunk *next = atomic_load_explicit(&chunk->next, memory_order_acquire);
        size_t filled = atomic_load_explicit(&chunk->filled, memory_order_acquire);

        if (filled - chunk->taken > size - stored)
            break;
        memcpy(buffer + stored, chunk->lines + chunk->taken, filled - chunk->taken);
        stored += filled - chunk->taken;
        chunk->taken = filled;
        if (!next)
            break;
        report->oldest = next;
        free_chunk(report, chunk);
    }
    return stored;
}

/* ---- a connection's end ---- */

void report_closed(struct report *report, const struct dp_record *record)
{
    const struct dp_log_texts *texts = texts_for(report->shared, DP_LOG_CONNECTIONS);
    char *line = texts ? begin_line(report) : NULL;

    count_closed(&report->tallies, record);
    if (line)
        end_line(report, dp_log_line(texts, record, line));
    ring_write(&report->records, record);
    report->news = true;
}

void report_announce(struct report *report)
{
    uint64_t one = 1;

    if (!report->news)
        return;
    report->news = false;
    if (!atomic_exchange_explicit(&report->shared->announced, true, memory_order_acq_rel) &&
        write(report->shared->event, &one, sizeof one) < 0)
        return; /* an eventfd at its limit is readable all the same */
}

void reports_acknowledge(struct reports *shared)
{
    uint64_t count;

    if (read(shared->event, &count, sizeof count) < 0)
        count = 0; /* nobody announced anything: look all the same */
    (void)atomic_exchange_explicit(&shared->announced, false, memory_order_acq_rel);
}
