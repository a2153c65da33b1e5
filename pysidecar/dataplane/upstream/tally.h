/* What is counted of requests, for a service or an endpoint. Each worker has one of its own, so
 * that counting needs no locked instruction; the control thread adds them up. */
#ifndef PYSIDECAR_UPSTREAM_TALLY_H
#define PYSIDECAR_UPSTREAM_TALLY_H

#include "base/counter.h"
#include "base/terms.h"

enum { TALLY_BOUNDS = 16 }; /* of durations; report.c has the values */

struct tally {
    counter active; /* under way now */
    counter statuses[DP_STATUS_CLASSES];
    counter flags[DP_FLAGS];
    counter attempts; /* may be more than requests */
    counter bytes[2]; /* sent, received */
    counter durations[TALLY_BOUNDS + 1];
    counter duration_us;
    counter connections; /* upstream connections open now */
    counter pending;     /* requests that wait for one now */
};

#endif
