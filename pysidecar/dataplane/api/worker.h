/* A worker's thread: its parts, and the end of each turn of its loop. */
#ifndef PYSIDECAR_API_WORKER_H
#define PYSIDECAR_API_WORKER_H

#include <pthread.h>

#include "api/inbox.h"
#include "l7/router.h"
#include "loop/worker.h"
#include "net/pipe.h"
#include "net/spares.h"
#include "upstream/routes.h"

struct thread {
    struct worker *worker;
    struct inbox inbox;
    struct inboxes *inboxes; /* of all workers */
    pthread_t id;
    bool started;
    const atomic_bool *stopping;
    struct timer alive; /* to show a sign of life in the page */
    struct task turn_ends;
    struct pipes pipes;
    struct spares spares;
    struct tables tables;
    struct router router;
};

/* The worker's shared parts are set already. 0 or -errno. Destroy it after a failure, too. */
int thread_create(struct thread *thread, struct worker *workers, uint32_t worker_count,
                  unsigned index);
void thread_destroy(struct thread *thread);
/* All listeners must be known. 0 or -errno. */
int thread_prepare(struct thread *thread);
/* 0 or -errno. */
int thread_start(struct thread *thread);

#endif
