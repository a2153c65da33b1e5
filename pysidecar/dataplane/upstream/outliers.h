/* Outlier detection: an endpoint at which requests fail, one after the other, is ejected for a
 * while. As Envoy's `consecutive_5xx`, with what fails before there is an answer. */
#ifndef PYSIDECAR_UPSTREAM_OUTLIERS_H
#define PYSIDECAR_UPSTREAM_OUTLIERS_H

#include "upstream/service.h"

/* What became of one attempt at a request, at one endpoint. */
struct attempt {
    bool failed; /* by the endpoint's fault: no answer, or one that says so */
    /* From when it was sent until its answer began, or it failed; 0: nothing was sent. */
    uint64_t latency_ns;
};

/* Notes it. True: it ejects the endpoint. NULLs are allowed. */
bool outliers_note(const struct service *service, struct endpoint *endpoint,
                   const struct attempt *attempt, uint64_t now_ms);

#endif
