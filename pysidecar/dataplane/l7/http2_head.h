/* Heads of HTTP/2 as HPACK leaves them, and as a codec of them: blocks of fields, the pseudo-header
 * fields first. What HTTP/2 itself asks of them, libnghttp2 has checked (see l7/http2.h). */
#ifndef PYSIDECAR_L7_HTTP2_HEAD_H
#define PYSIDECAR_L7_HTTP2_HEAD_H

#include "l7/buffer.h"
#include "l7/codec.h"

enum http2_block_flag {
    HTTP2_BLOCK_ENDS = 1, /* nothing follows in its direction */
};

/* Stands before the fields, each of which is two sizes (uint32_t), its name and its value. */
struct http2_block {
    uint32_t bytes; /* with this */
    uint16_t count;
    uint16_t flags; /* enum http2_block_flag */
};

/* ---- writing one as its fields come ---- */

/* False when out of memory. */
bool http2_block_begin(struct blocks *blocks, struct buffer *buffer);
bool http2_block_add(struct blocks *blocks, struct buffer *buffer, struct text name,
                     struct text value);
/* It is complete; `flags` are those of enum http2_block_flag. */
void http2_block_end(struct buffer *buffer, uint16_t flags);

/* ---- reading ---- */

struct http2_reader {
    const uint8_t *at, *end;
};

/* Begins with a block, of which all is there. Stores what stands before its fields. */
struct http2_reader http2_read_block(const uint8_t *data, struct http2_block *block);
/* False: there is no further one. */
bool http2_next_field(struct http2_reader *reader, struct field *field);

/* ---- trailers ---- */

/* Reads those of a block. Valid as message.fields are. */
void http2_read_trailers(const uint8_t *data, struct message *message);
/* As codec.encode. 0: too little room. */
size_t http2_encode_trailers(const struct message *message, uint8_t *to, size_t room);
/* The trailers of a call of gRPC whose answer we cannot complete. As codec.reject. */
size_t http2_encode_grpc_end(const struct rejection *rejection, uint8_t *to, size_t room);

#endif
