/* Sessions that begin with a PROXY protocol v2 header (haproxy's proxy-protocol.txt, section 2.2).
 * A header is peeked at until it is complete and only then taken, so a partial one needs no memory.
 */
#ifndef PYSIDECAR_INTERCEPT_HEADER_H
#define PYSIDECAR_INTERCEPT_HEADER_H

#include "intercept/session.h"

extern const struct intercept intercept_header;

#endif
