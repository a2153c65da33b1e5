/* Trace points: what happens to a session, station by station, for people who look for a fault.
 *
 * While nobody looks, a point costs one load and a branch that is not taken; its arguments are not
 * evaluated. Each worker writes to a ring of its own and never waits; the control thread reads it.
 * It never holds a secret, or a byte that a connection carries. */
#ifndef PYSIDECAR_BASE_TRACE_H
#define PYSIDECAR_BASE_TRACE_H

#include <stdbool.h>

#include "base/ring.h"
#include "base/terms.h"

/* The stations: name, meaning for people, and kind (enum dp_kind) and name of each of two numbers.
 * Python reads the same table. A new station also goes into docs/debugging.md. */
#define TRACE_STATIONS(X)                                                                          \
    X(accepted, "accepted", TRANSPORT, "transport", DIRECTION, "direction")                        \
    X(process, "comes from a process", COMMAND, "process", NONE, "pid")                            \
    X(requested, "wants to go", ADDRESS, "destination", NONE, "")                                  \
    X(routed, "route chosen", ROUTE, "route", ACTION, "action")                                    \
    X(direct, "left to the application, which connects", ADDRESS, "endpoint", NONE, "")            \
    X(not_direct, "the application cannot go there itself: a request follows", NONE, "", NONE, "") \
    X(connecting, "connecting", ADDRESS, "endpoint", NONE, "")                                     \
    X(connect_failed, "connect failed", ERRNO, "errno", NUMBER, "attempt")                         \
    X(connected, "upstream connected", NUMBER, "attempt", NONE, "")                                \
    X(application_connected, "the application's socket is connected to us", FLAG, "parked", NONE,  \
      "")                                                                                          \
    X(application_failed, "the application's connect fails", ERRNO, "errno", FLAG, "parked")       \
    X(completed, "completed: bytes may pass", NONE, "", NONE, "")                                  \
    X(refused, "refused", END, "end", ERRNO, "errno")                                              \
    X(first_bytes, "first bytes", SIDE, "from", NUMBER, "bytes")                                   \
    X(splicing, "many bytes: spliced from here on", SIDE, "from", NONE, "")                        \
    X(copying, "few bytes: copied from here on", SIDE, "from", NONE, "")                           \
    X(accelerated, "accelerated in the kernel", PATH, "path", NUMBER, "tries_left")                \
    X(not_accelerated, "not accelerated", NUMBER, "tries_left", NONE, "")                          \
    X(left_kernel, "back from the kernel to the relay", NONE, "", NONE, "")                        \
    X(held_back, "the receiver is behind: nothing more is read", SIDE, "to", NUMBER, "bytes")      \
    X(goes_on, "the receiver has caught up", SIDE, "to", NONE, "")                                 \
    X(ended, "end passed on", SIDE, "from", NUMBER, "bytes")                                       \
    X(reset, "reset, or failed", SIDE, "by", ERRNO, "errno")                                       \
    X(expired, "time is over", TIMER, "timer", NONE, "")                                           \
    X(request_ended, "a request has ended", NUMBER, "status", FAILURE, "failure")                  \
    X(closed, "closed", END, "end", ERRNO, "errno")                                                \
    X(table_adopted, "new routes", TABLE, "table", NUMBER, "routes")                               \
    X(services_adopted, "new services", NUMBER, "table", NUMBER, "services")                       \
    X(out_of_descriptors, "too few file descriptors", NUMBER, "used", NUMBER, "available")

enum station {
#define TRACE_STATION(name, ...) TRACE_##name,
    TRACE_STATIONS(TRACE_STATION)
#undef TRACE_STATION
};

/* A worker's. */
struct trace {
    _Atomic(struct ring *) ring; /* NULL while nobody looks */
    struct ring *kept;           /* the same, or the last one; the control thread's */
    uint16_t worker;
};

static inline bool trace_is_on(const struct trace *trace)
{
    return __builtin_expect(!!atomic_load_explicit(&trace->ring, memory_order_relaxed), 0);
}

/* The session's id (0 for none), the station's name, and its numbers. */
#define trace(worker, session, name, first, second)                                 \
    do {                                                                            \
        if (trace_is_on(&(worker)->trace))                                          \
            trace_write(&(worker)->trace, session, TRACE_##name, (uint64_t)(first), \
                        (uint64_t)(second));                                        \
    } while (0)

/* For stations with an address. */
#define trace_address(worker, session, name, address)                              \
    do {                                                                           \
        if (trace_is_on(&(worker)->trace))                                         \
            trace_write_address(&(worker)->trace, session, TRACE_##name, address); \
    } while (0)

/* Who asks, and for what. */
#define trace_request(worker, session, command, pid, destination)                      \
    do {                                                                               \
        if (trace_is_on(&(worker)->trace))                                             \
            trace_write_request(&(worker)->trace, session, command, pid, destination); \
    } while (0)

void trace_write(struct trace *trace, uint64_t session, enum station station, uint64_t first,
                 uint64_t second);
void trace_write_address(struct trace *trace, uint64_t session, enum station station,
                         const struct mosnhook_address *address);
void trace_write_request(struct trace *trace, uint64_t session,
                         const char command[MOSNHOOK_COMMAND_SIZE], uint32_t pid,
                         const struct mosnhook_address *destination);

/* The following are for the control thread. */

/* Begins to trace; forgets earlier events. 0 or -errno. */
int trace_begin(struct trace *trace);
void trace_end(struct trace *trace);
/* See dp_take_trace. */
size_t trace_take(struct trace *trace, struct dp_trace_event *events, size_t max, uint64_t *missed);
/* Its worker must be gone. */
void trace_free(struct trace *trace);

#endif
