/* Accepting. All workers watch all listeners, and the kernel wakes one of them for a connection. */
#ifndef PYSIDECAR_INTERCEPT_LISTENER_H
#define PYSIDECAR_INTERCEPT_LISTENER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "loop/worker.h"

enum { MAX_LISTENERS = 64 };

struct listener {
    int fd;
    struct dp_listener settings;
};

/* Shared by all workers; does not change while they run, but for the atomics. */
struct listeners {
    struct listener each[MAX_LISTENERS];
    size_t count;
    struct worker *workers;
    uint32_t worker_count;
    atomic_bool draining;
    atomic_uint undrained; /* workers that still accept */
};

/* Adds a listening socket. 0 or -errno: then it is still the caller's. */
int listeners_add(struct listeners *listeners, int fd, const struct dp_listener *settings);
/* When no worker accepts. */
void listeners_close(struct listeners *listeners, struct foreign *foreign);

/* Begins to accept. False when out of memory. */
bool listener_watch_all(struct worker *worker);
/* Stops accepting for good; the last worker to do so closes the listeners. */
void listener_leave_all(struct worker *worker);

#endif
