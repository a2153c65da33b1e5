/* Whether there is a libnghttp2 to be built with. Without it, everything else is built. */
#ifndef PYSIDECAR_L7_HTTP2_LIBRARY_H
#define PYSIDECAR_L7_HTTP2_LIBRARY_H

#if __has_include(<nghttp2/nghttp2ver.h>)
#include <nghttp2/nghttp2ver.h>
#endif

/* 1.50: what priorities became in RFC 9218. */
#if defined(NGHTTP2_VERSION_NUM) && NGHTTP2_VERSION_NUM >= 0x013200
#define HAS_LIBNGHTTP2 1
#else
#define HAS_LIBNGHTTP2 0
#endif

#endif
