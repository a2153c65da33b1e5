/* Accepting. All workers watch all listeners, and the kernel wakes one worker for a connection.
 * handover.h says who serves it. */
#ifndef PYSIDECAR_INTERCEPT_LISTENER_H
#define PYSIDECAR_INTERCEPT_LISTENER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "loop/worker.h"

enum { MAX_LISTENERS = 64 };

struct intercept;

struct listener {
    int fd;        /* may be closed already when a connection that it accepted is served */
    uint16_t port; /* of TCP */
    const struct intercept *intercept; /* how its connections come */
    struct dp_listener settings;
};

/* Shared by all workers. Only the atomics change while they run. */
struct listeners {
    struct listener each[MAX_LISTENERS];
    size_t count;
    struct worker *workers;
    uint32_t worker_count;
    atomic_bool draining;
    atomic_uint undrained; /* workers that still accept */
    int event;             /* an eventfd that is signalled when none does; or -1 */
};

/* Adds a listening socket. 0, or -errno: then the socket is still the caller's. */
int listeners_add(struct listeners *listeners, int fd, const struct dp_listener *settings);
/* No worker may be accepting. */
void listeners_close(struct listeners *listeners, struct foreign *foreign);

/* Begins to accept. False when out of memory. */
bool listener_watch_all(struct worker *worker);
/* Stops accepting for good. The last worker to do so closes the listeners. */
void listener_leave_all(struct worker *worker);

#endif
