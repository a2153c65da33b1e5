#include "base/trace.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

enum { KEPT_EVENTS = 8192 }; /* per worker: 320 KiB, from the first look on */

#define STATION(name, text, first_kind, first, second_kind, second) \
    {#name, text, first, second, DP_KIND_##first_kind, DP_KIND_##second_kind},
const struct dp_trace_station dp_trace_stations[] = {TRACE_STATIONS(STATION)};

const uint32_t dp_trace_station_count = sizeof dp_trace_stations / sizeof *dp_trace_stations;

static void write_event(struct trace *trace, uint64_t session, enum station station,
                        const uint64_t numbers[2], uint32_t third)
{
    struct ring *ring = atomic_load_explicit(&trace->ring, memory_order_acquire);
    struct dp_trace_event event = {
        .time_ns = clock_ns(CLOCK_MONOTONIC),
        .session = session,
        .first = numbers[0],
        .second = numbers[1],
        .third = third,
        .station = (uint16_t)station,
        .worker = trace->worker,
    };

    if (ring)
        ring_write(ring, &event);
}

void trace_write(struct trace *trace, uint64_t session, enum station station, uint64_t first,
                 uint64_t second)
{
    write_event(trace, session, station, (uint64_t[2]){first, second}, 0);
}

void trace_write_address(struct trace *trace, uint64_t session, enum station station,
                         const struct mosnhook_address *address)
{
    uint64_t numbers[2];

    _Static_assert(sizeof numbers == sizeof address->ip, "an IP address is two numbers");
    memcpy(numbers, address->ip, sizeof numbers);
    write_event(trace, session, station, numbers, address->port);
}

void trace_write_request(struct trace *trace, uint64_t session,
                         const char command[MOSNHOOK_COMMAND_SIZE], uint32_t pid,
                         const struct mosnhook_address *destination)
{
    uint64_t numbers[2];

    _Static_assert(sizeof numbers == MOSNHOOK_COMMAND_SIZE, "a command is two numbers");
    memcpy(numbers, command, sizeof numbers);
    write_event(trace, session, TRACE_process, numbers, pid);
    trace_write_address(trace, session, TRACE_requested, destination);
}

/* ---- the control thread's side ---- */

int trace_begin(struct trace *trace)
{
    if (!trace->kept) {
        struct ring *ring = calloc(1, sizeof *ring);

        if (!ring || ring_create(ring, sizeof(struct dp_trace_event), KEPT_EVENTS) < 0) {
            free(ring);
            return -ENOMEM;
        }
        trace->kept = ring;
    }
    ring_skip(trace->kept);
    atomic_store_explicit(&trace->ring, trace->kept, memory_order_release);
    return 0;
}

/* The ring stays: the worker may be about to write one more event. */
void trace_end(struct trace *trace)
{
    atomic_store_explicit(&trace->ring, NULL, memory_order_relaxed);
}

size_t trace_take(struct trace *trace, struct dp_trace_event *events, size_t max, uint64_t *missed)
{
    return trace->kept ? ring_take(trace->kept, events, max, missed) : 0;
}

void trace_free(struct trace *trace)
{
    if (trace->kept)
        ring_destroy(trace->kept);
    free(trace->kept);
    trace->kept = NULL;
}
