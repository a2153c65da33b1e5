/* What the files of the HTTP/1.1 codec share: see l7/codec.h for what they are for. */
#ifndef PYSIDECAR_L7_HTTP1_H
#define PYSIDECAR_L7_HTTP1_H

#include "l7/codec.h"
#include "l7/http1_syntax.h"

enum {
    MAX_CONNECTION_OPTIONS = 32, /* of a message */
    STATUS_SWITCHING_PROTOCOLS = 101,
    STATUS_NO_CONTENT = 204,
    STATUS_NOT_MODIFIED = 304,
    STATUS_UPGRADE_REQUIRED = 426,
};

/* Says what is wrong with a message. Returns false. */
static inline bool http1_refuse(struct message *message, uint16_t status, const char *problem)
{
    message->http_status = status;
    message->problem = problem;
    return false;
}

/* ---- http1_head.c: a head as a whole. False where it is wrong or not all there ---- */

/* The line alone, with its end. */
bool http1_read_line(struct cursor *in, bool response, struct message *message);
/* Line and fields. What follows is said by the message and the decoder's `left` and `plain`:
 * has_body without plain is a body in chunks. */
bool http1_read_head(struct cursor *in, struct decoder *decoder, struct message *message);
/* RFC 9110, 9.2.2. */
bool http1_is_idempotent(struct text method);
bool http1_read_trailers(struct cursor *in, const struct limits *limits, struct message *message);

/* ---- http1_encode.c ---- */

size_t http1_encode(struct encoder *encoder, const struct message *message,
                    const struct adjustment *adjustment, uint8_t *to, size_t room);
size_t http1_before_data(const struct encoder *encoder, uint64_t size, uint8_t *to);
size_t http1_after_data(const struct encoder *encoder, uint8_t *to);
size_t http1_end(const struct encoder *encoder, const struct message *message, uint8_t *to,
                 size_t room);

/* ---- http1_reject.c ---- */

/* The status of an answer of ours; the flag's name; what a status says by itself. */
uint16_t http1_reject_status(const struct rejection *rejection);
struct text http1_reject_word(enum dp_flag flag);
struct text http1_phrase(uint32_t status);

size_t http1_reject(const struct facts *facts, uint64_t id, const struct rejection *rejection,
                    uint8_t *to, size_t room);

#endif
