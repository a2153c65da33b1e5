/* What is counted of requests, for a service or an endpoint. Each worker has one of its own, so
 * that counting needs no locked instruction; the control thread adds them up. Whoever serves
 * requests keeps `active`, `connections` and `pending`; api/requests.c counts the rest when one has
 * ended. */
#ifndef PYSIDECAR_UPSTREAM_TALLY_H
#define PYSIDECAR_UPSTREAM_TALLY_H

#include "base/counter.h"
#include "base/terms.h"

enum { TALLY_BOUNDS = 16 }; /* of durations: see dp_request_bounds_ns */

/* As struct dp_tally, of one worker. */
struct tally {
    counter active; /* under way now */
    counter statuses[DP_STATUS_CLASSES];
    counter flags[DP_FLAGS];
    counter failures;
    counter attempts; /* may be more than requests */
    counter bytes[2]; /* sent, received */
    counter durations[DP_STATUS_CLASSES][TALLY_BOUNDS + 1];
    counter duration_us[DP_STATUS_CLASSES];
    counter connections; /* upstream connections open now */
    counter pending;     /* requests that wait for one now */
};

#endif
