#ifndef PYSIDECAR_UPSTREAM_ORIGIN_H
#define PYSIDECAR_UPSTREAM_ORIGIN_H

#include "base/terms.h"

/* Where a connection came from, and where it wanted to go. */
struct origin {
    const struct dp_listener *listener;
    struct mosnhook_address source, original_destination;
};

#endif
