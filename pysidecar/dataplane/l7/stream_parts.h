/* What the files of a stream share. */
#ifndef PYSIDECAR_L7_STREAM_PARTS_H
#define PYSIDECAR_L7_STREAM_PARTS_H

#include "l7/downstream.h"
#include "l7/router.h"
#include "l7/sides.h"
#include "l7/stream.h"
#include "l7/streams.h"

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
/* As much of it as there is room for, without a NUL. */
void stream_copy_text(char *to, size_t size, struct text from);
/* Its service, which is referenced and counted. */
void stream_set_service(struct stream *stream, struct service *service);
void stream_enter_pool(struct stream *stream, struct pool *pool);
/* `complete`: the uplink has nothing more of it, and can go on. */
void stream_leave_pool(struct stream *stream, bool complete);
/* What its answer is: the status goes into its record. */
void stream_note_status(struct stream *stream, uint32_t status, bool succeeded);

/* False: there is no room for a timer. */
bool stream_reserve_timer(struct stream *stream);
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

/* ---- stream_request.c: what is sent ---- */

/* Sends it at once where it can be, and keeps it where it has to wait, or may be sent again.
 * `size`: of the head as it came. */
void stream_send(struct stream *stream, const struct message *request,
                 struct adjustment *adjustment, size_t size);

#endif
