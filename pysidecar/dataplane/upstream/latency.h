/* How long an endpoint's answers take, for DP_PEAK_EWMA: an average in which what is older than ten
 * seconds counts little, and a slow answer all at once (Finagle's "peak EWMA"). So an endpoint that
 * gets slow is avoided from its first slow answer on, and is asked again when that is long ago. */
#ifndef PYSIDECAR_UPSTREAM_LATENCY_H
#define PYSIDECAR_UPSTREAM_LATENCY_H

#include <stdbool.h>

#include "upstream/endpoint.h"

/* One answer took so long. A failure does not make the endpoint look any faster. */
void latency_add(struct endpoint *endpoint, uint64_t ns, bool failed, uint64_t now_ms);

/* What one more request there costs: microseconds, times those under way. */
uint64_t latency_cost(const struct endpoint *endpoint, uint64_t now_ms);

#endif
