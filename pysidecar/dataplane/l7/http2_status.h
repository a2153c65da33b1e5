/* The status of an answer of HTTP/2, for those who make nothing of its other headers. */
#ifndef PYSIDECAR_L7_HTTP2_STATUS_H
#define PYSIDECAR_L7_HTTP2_STATUS_H

#include <stddef.h>
#include <stdint.h>

/* That of a whole header block, of a peer that was told to keep no table. 0: it has none, or cannot
 * be understood, or libnghttp2 is not built in. */
uint32_t http2_status(const uint8_t *block, size_t size);

#endif
