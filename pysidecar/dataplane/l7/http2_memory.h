/* Memory for libnghttp2, which asks for a few small pieces for each request and frees them soon: a
 * worker keeps what is free, by size. */
#ifndef PYSIDECAR_L7_HTTP2_MEMORY_H
#define PYSIDECAR_L7_HTTP2_MEMORY_H

#include <stddef.h>

enum { HTTP2_PIECE_SIZES = 16 };

struct http2_piece;

/* A worker's. Begin with zeros. */
struct http2_memory {
    struct http2_piece *free[HTTP2_PIECE_SIZES];
    size_t kept; /* bytes of these */
};

/* As malloc and so on, for nghttp2_mem. */
void *http2_memory_take(size_t size, void *memory);
void http2_memory_give(void *piece, void *memory);
void *http2_memory_take_zeros(size_t count, size_t size, void *memory);
void *http2_memory_resize(void *piece, size_t size, void *memory);
/* With all given back. */
void http2_memory_close(struct http2_memory *memory);

#endif
