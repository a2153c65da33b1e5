/* What the files of a stream share. */
#ifndef PYSIDECAR_L7_STREAM_PARTS_H
#define PYSIDECAR_L7_STREAM_PARTS_H

#include "l7/downstream.h"
#include "l7/router.h"
#include "l7/sides.h"
#include "l7/stream.h"
#include "l7/streams.h"

enum { KEPT_BYTES = BLOCK_BYTES }; /* of a request that may be sent again */

/* ---- stream.c: life, time and end ---- */

static inline struct worker *stream_worker(const struct stream *stream)
{
    return stream->downstream->session->worker;
}

static inline const struct dp_listener *stream_listener(const struct stream *stream)
{
    return stream->downstream->session->origin.listener;
}

static inline void stream_set_flag(struct stream *stream, enum dp_flag flag)
{
    stream->record.flags |= 1u << flag;
}

/* NULL when out of memory. */
struct stream *stream_create(struct downstream *downstream, const struct message *request);
/* One without a client of its own, which is not in the list of the downstream if it is a twin. NULL
 * when out of memory. */
struct stream *stream_create_shadow(struct downstream *downstream, enum shadow kind);
/* As much of it as there is room for, without a NUL. */
void stream_copy_text(char *to, size_t size, struct text from);
/* Its service, which is referenced and counted. */
void stream_set_service(struct stream *stream, struct service *service);
void stream_enter_pool(struct stream *stream, struct pool *pool);
/* `complete`: the uplink has nothing more of it, and can go on. */
void stream_leave_pool(struct stream *stream, bool complete);
/* What its answer is: the status goes into its record. */
void stream_note_status(struct stream *stream, uint32_t status, bool succeeded);

void stream_note_first_byte(struct stream *stream);
/* As that of a call of gRPC, which it has at its end. */
void stream_note_grpc(struct stream *stream, uint8_t status);

/* False: there is no room for a timer. */
bool stream_reserve_timer(struct stream *stream);
/* Sets its timer to what is due first; a place is reserved. */
void stream_set_timer(struct stream *stream);
/* `ms`: for all of the answer; 0: there is no such limit. */
void stream_begin_timer(struct stream *stream, uint32_t ms);

/* Nothing more of it is to come, in either direction. The downstream does not know it any more. */
void stream_end(struct stream *stream, bool complete);
/* It gets no answer of the service, or no complete one. Where it can get none at all, the
 * connection ends, too: the next answer would be taken for this one. `problem`: of a request that
 * is not understood, or NULL. */
void stream_fail(struct stream *stream, enum dp_flag why, const struct message *problem);

/* ---- stream_route.c: where it goes ---- */

/* Finds its service, or waits for it; then goes on. */
void stream_find_way(struct stream *stream, const struct message *request);
/* The next endpoint; where there is none, it fails for the reason `otherwise`. */
void stream_try_next(struct stream *stream, enum dp_flag otherwise);
void stream_leave_wanting(struct stream *stream);
/* Goes on with this service, which is its own before or after a reload. */
void stream_follow(struct stream *stream, struct service *service);
/* The endpoint counts as tried, and as the last one. NULL: the original destination. */
void stream_note_tried(struct stream *stream, struct endpoint *endpoint);

/* ---- stream_request.c: what is sent ---- */

/* Sends it at once where it can be, and keeps it where it has to wait, or may be sent again.
 * `size`: of the head as it came. */
void stream_send(struct stream *stream, const struct message *request,
                 struct adjustment *adjustment, size_t size);

/* ---- stream_attempts.c: whether it is let in, and how often it is sent ---- */

/* With what was found for it, and a service that is counted. False: it is over. */
bool stream_admit(struct stream *stream, const struct routed *routed);
/* It is over: nothing counts it any more. */
void stream_leave_load(struct stream *stream);
/* The same for a copy for a mirror, of which the mirror's limits decide. */
bool stream_enter_service(struct stream *stream);
/* Its rule says that it waits before it is sent. False: it does not. */
bool stream_hold(struct stream *stream);
/* Whether it is sent again by its service's rules, and not only where no endpoint was connected. */
bool stream_has_retries(const struct stream *stream);
/* One attempt more counts among the retries of its service. False: there are too many. */
bool stream_enter_retries(struct stream *stream);
/* Likewise, where its service has retries: another one may be sent at once. */
bool stream_spend_retry(struct stream *stream);
/* Its attempt has failed: sends it again, now or later, or goes on with its twin. False: it does
 * not. */
bool stream_retry(struct stream *stream, enum dp_retry why, enum dp_flag otherwise);
/* The head of an answer has come. True: it is not for the client, and what follows of it comes to
 * nobody, or to another stream. */
bool stream_drop_answer(struct stream *stream, const struct message *message, size_t size);
/* The request has been written to an uplink, or all of it has been read by now. */
void stream_attempt_begins(struct stream *stream);
/* When stream_attempt_due has something to do; UINT64_MAX: never. */
uint64_t stream_attempt_due_ms(const struct stream *stream);
/* It is time. It may be over afterwards. */
void stream_attempt_due(struct stream *stream);

#endif
