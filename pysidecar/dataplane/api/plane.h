/* A data plane: everything that its workers share, composed of the parts in the folders above. */
#ifndef PYSIDECAR_API_PLANE_H
#define PYSIDECAR_API_PLANE_H

#include "api/dataplane.h"
#include "api/inbox.h"
#include "api/worker.h"
#include "intercept/clients.h"
#include "intercept/listener.h"
#include "intercept/park.h"
#include "l4/accelerator.h"
#include "l7/router.h"
#include "l7/tracer.h"
#include "l7/wanted.h"
#include "net/budget.h"
#include "upstream/routes.h"

struct dp {
    struct worker *workers;
    struct thread *threads; /* as many */
    uint32_t worker_count;
    uint32_t kept_fds; /* for the control plane, beside those that it always has */
    bool started, joined;
    atomic_bool stopping;
    int event;

    struct timeouts timeouts;
    struct limits limits;
    struct budget budget;
    struct foreign *foreign;
    struct routes routes;
    struct directories directories;
    struct wanted wanted;
    struct tracing tracing;
    struct clients clients;
    struct parks parks;
    struct listeners listeners;
    struct accelerator accelerator;
    struct inboxes inboxes;
    struct mosnhook_page *page;
};

/* Prepares everything but the threads. 0 or -errno. */
int plane_prepare(struct dp *dp);

#endif
