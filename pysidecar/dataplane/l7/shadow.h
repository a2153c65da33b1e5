/* Streams without a client of their own: a twin, which sends a request to a second endpoint before
 * the first one has answered (hedging), and a copy, which goes to a mirror and whose answer is
 * dropped. */
#ifndef PYSIDECAR_L7_SHADOW_H
#define PYSIDECAR_L7_SHADOW_H

#include "l7/codec.h"
#include "loop/worker.h"

struct service;
struct stream;

/* What a stream is. */
enum shadow {
    SHADOW_NONE = 0, /* a client's */
    SHADOW_TWIN,
    SHADOW_COPY,
};

/* A worker's clients of copies: one for each listener and protocol. */
struct shadows;

/* ---- hedging ---- */

/* Sends it to a second endpoint, too, where that is possible. */
void shadow_hedge(struct stream *stream);
/* Its own attempt is over; it goes on with its twin's, or fails for that reason. */
void shadow_await_twin(struct stream *stream, enum dp_flag otherwise, bool complete);
/* The twin is not wanted any more, if there is one. */
void shadow_drop_twin(struct stream *stream);
/* The head of an answer has come to the twin, which is over: either its stream goes on with the
 * rest of it, or it is dropped. */
void shadow_twin_answered(struct stream *twin, const struct message *message, size_t size);
/* The twin has failed, and is over. */
void shadow_twin_failed(struct stream *twin);
/* Whether the answer is one that a client wants. */
bool shadow_is_good(const struct stream *stream, const struct message *message);

/* ---- mirrors ---- */

/* Its request is to be copied to that service, once it is complete. */
void shadow_choose_mirror(struct stream *stream, struct service *service);
/* Copies it, if that is wanted and possible. */
void shadow_send_mirror(struct stream *stream);
/* It is not copied any more. */
void shadow_forget_mirror(struct stream *stream);

/* When the worker's sessions are closed: nobody waits for what is under way. */
void shadows_close(struct worker *worker);

#endif
