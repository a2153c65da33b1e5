#ifndef PYSIDECAR_L7_DETECT_H
#define PYSIDECAR_L7_DETECT_H

#include "l7/codec.h"

/* Whether a connection begins as one of requests, and in which protocol. At least 1 byte. */
enum detection detect_protocol(const uint8_t *data, size_t size, enum dp_protocol *protocol);

enum { DETECT_BYTES = 64 }; /* no protocol needs more to be told */

#endif
