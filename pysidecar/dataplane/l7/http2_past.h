/* What is known of a client's streams that have ended: enough to tell what a client must not send
 * from what it sent before it knew of the end. */
#ifndef PYSIDECAR_L7_HTTP2_PAST_H
#define PYSIDECAR_L7_HTTP2_PAST_H

#include <stdbool.h>
#include <stdint.h>

enum { PAST_STREAMS = 16 };

/* All zero: none yet. */
struct http2_past {
    uint32_t newest;                   /* the highest that was opened */
    uint32_t skipped_from, skipped_to; /* the latest ones that were passed over; 0: none */
    uint32_t ended[PAST_STREAMS];      /* the latest ones; as `entry_of` writes them */
    uint8_t next;                      /* where the next one goes */
};

enum http2_fate {
    FATE_UNKNOWN, /* we may have ended it, or it is too long ago */
    FATE_ENDED,   /* the client has said that nothing more comes */
    FATE_RESET,   /* the client has reset it */
    FATE_SKIPPED, /* it was never opened, and a later one was */
};

/* A head has come for a stream above all others. */
void http2_past_opened(struct http2_past *past, uint32_t id);
void http2_past_ended(struct http2_past *past, uint32_t id, bool reset);
/* Of a stream that is not open. */
enum http2_fate http2_past_fate(const struct http2_past *past, uint32_t id);
/* It is answered: further frames of the stream are ignored. */
void http2_past_forget(struct http2_past *past, uint32_t id);

#endif
