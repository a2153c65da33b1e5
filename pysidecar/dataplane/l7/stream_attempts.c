/* Whether a request is let in, and how often it is sent. */
#include "intercept/listener.h"
#include "l7/outcome.h"
#include "l7/shadow.h"
#include "l7/stream_parts.h"
#include "upstream/routes.h"

enum { MOST_HELD = 1024 }; /* of a worker's requests, by faults */

static const struct dp_resilience *resilience_of(const struct stream *stream)
{
    return &stream->service->resilience;
}

/* ---- being let in ---- */

bool stream_enter_service(struct stream *stream)
{
    const struct dp_resilience *resilience = resilience_of(stream);
    struct load *load = &stream->service->standing->load;

    if (resilience->rate_requests > 0 &&
        !load_take_token(load, resilience, stream_worker(stream)->loop.now_ns)) {
        stream_fail(stream, DP_FLAG_RATE_LIMITED, NULL);
        return false;
    }
    if (resilience->requests > 0) {
        if (!load_enter_request(load, resilience)) {
            stream_set_flag(stream, DP_FLAG_LIMIT_REQUESTS);
            stream_fail(stream, DP_FLAG_OVERLOAD, NULL);
            return false;
        }
        stream->in_load = true;
    }
    return true;
}

bool stream_admit(struct stream *stream, const struct routed *routed)
{
    const struct dp_handling *handling = routed->handling;
    uint64_t *random = &stream_worker(stream)->tables->random;

    if (handling && share_is_met(handling->abort_share, random)) {
        const struct message problem = {.http_status = (uint16_t)handling->abort_status};

        stream_fail(stream, DP_FLAG_FAULT_ABORT, &problem);
        return false;
    }
    if (stream->service && !stream_enter_service(stream))
        return false;
    if (handling) {
        stream->idempotent |= handling->idempotent != 0;
        stream->hedge_ms = stream->idempotent && stream->service ? handling->hedge_ms : 0;
        if (share_is_met(handling->delay_share, random))
            stream->delay_ms = handling->delay_ms;
    }
    if (routed->mirror && share_is_met(resilience_of(stream)->mirror_share, random))
        shadow_choose_mirror(stream, routed->mirror);
    return true;
}

static void leave_held(struct stream *stream)
{
    if (stream->held)
        stream_worker(stream)->streams->held_count--;
    stream->held = false;
}

void stream_leave_load(struct stream *stream)
{
    struct load *load = stream->service ? &stream->service->standing->load : NULL;

    leave_held(stream);
    if (stream->in_load)
        load_leave_request(load);
    if (stream->in_retries)
        load_leave_retry(load);
    stream->in_load = stream->in_retries = false;
}

/* ---- waiting ---- */

static bool wait_until(struct stream *stream, uint32_t ms)
{
    if (ms == 0 || !stream_reserve_timer(stream))
        return false;
    stream->resume_at_ms = stream_worker(stream)->loop.now_ms + ms;
    stream_set_timer(stream);
    return true;
}

bool stream_hold(struct stream *stream)
{
    struct streams *streams = stream_worker(stream)->streams;

    if (stream->delay_ms == 0 || streams->held_count >= MOST_HELD || !stream_keep(stream) ||
        !wait_until(stream, stream->delay_ms))
        return false;
    streams->held_count++;
    stream->held = true;
    stream->failed = DP_FLAG_NO_ENDPOINT;
    stream_set_flag(stream, DP_FLAG_FAULT_DELAY);
    return true;
}

static void resume(struct stream *stream)
{
    stream->resume_at_ms = 0;
    leave_held(stream);
    if (stream->complete)
        stream->complete_ms = stream_worker(stream)->loop.now_ms; /* the silence begins anew */
    stream_try_next(stream, stream->failed);
}

/* ---- sending it again ---- */

/* Of the service, in all workers. */
static uint64_t active_requests(const struct stream *stream)
{
    const struct tally *tallies = stream->service->standing->tallies;
    uint64_t sum = 0;

    for (uint32_t i = 0; i < stream_worker(stream)->listeners->worker_count; i++)
        sum += counter_read(&tallies[i].active);
    return sum;
}

bool stream_enter_retries(struct stream *stream)
{
    struct load *load = &stream->service->standing->load;

    if (stream->in_retries)
        load_leave_retry(load);
    stream->in_retries = load_enter_retry(load, resilience_of(stream), active_requests(stream));
    if (!stream->in_retries)
        stream_set_flag(stream, DP_FLAG_RETRY_LIMITED);
    return stream->in_retries;
}

/* Whether all that there is of the request can be sent once more. */
static bool is_kept(struct stream *stream, enum dp_retry why)
{
    if (why == DP_RETRY_CONNECT_FAILURE) /* nothing was read beyond what waits */
        return true;
    if (!stream->keeps)
        stream_set_flag(stream, DP_FLAG_RETRY_UNKEPT);
    return stream->keeps && stream->complete;
}

bool stream_has_retries(const struct stream *stream)
{
    return stream->service && resilience_of(stream)->retries > 0 && !stream->shadow;
}

bool stream_spend_retry(struct stream *stream)
{
    if (!stream_has_retries(stream))
        return true;
    if (stream->retries >= resilience_of(stream)->retries || !stream_enter_retries(stream))
        return false;
    stream->retries++;
    return true;
}

/* After a reason for it. */
static bool may_send_again(struct stream *stream, enum dp_retry why)
{
    return !stream->answering && stream->retries < resilience_of(stream)->retries &&
           is_kept(stream, why) && stream_enter_retries(stream);
}

/* `complete`: see stream_leave_pool. */
static void send_again(struct stream *stream, enum dp_flag otherwise, bool complete)
{
    uint64_t *random = &stream_worker(stream)->tables->random;

    stream_set_flag(stream, DP_FLAG_RETRIED);
    stream->retries++;
    stream->failed = otherwise;
    stream_leave_pool(stream, complete);
    if (!wait_until(stream, retry_backoff_ms(resilience_of(stream), stream->retries, random)))
        resume(stream);
}

bool stream_retry(struct stream *stream, enum dp_retry why, enum dp_flag otherwise)
{
    if (stream->twin && !stream->answering) {
        outcome_note_failure(stream, otherwise);
        shadow_await_twin(stream, otherwise, false);
        return true;
    }
    if (!stream_has_retries(stream) ||
        !retry_is_for(resilience_of(stream), why, stream->idempotent) ||
        !may_send_again(stream, why))
        return false;
    outcome_note_failure(stream, otherwise);
    send_again(stream, otherwise, false);
    return true;
}

/* Whether the answer, of which this is the head, is dropped for another attempt. */
static bool retry_answered(struct stream *stream, const struct message *message)
{
    const struct dp_resilience *resilience = resilience_of(stream);
    uint32_t status = message->has_grpc_status ? message->grpc_status : message->status;

    if (message->refused && retry_is_for(resilience, DP_RETRY_REFUSED, false))
        return may_send_again(stream, DP_RETRY_REFUSED);
    return retry_is_for_status(resilience, status, stream->idempotent) &&
           may_send_again(stream, DP_RETRY_RESET);
}

bool stream_drop_answer(struct stream *stream, const struct message *message, size_t size)
{
    if (stream->shadow == SHADOW_TWIN) {
        shadow_twin_answered(stream, message, size);
        return true;
    }
    if (stream->twin && !shadow_is_good(stream, message)) {
        outcome_note(stream, true);
        shadow_await_twin(stream, DP_FLAG_UPSTREAM_RESET, !stream->up->takes_turns);
        return true;
    }
    if (stream_has_retries(stream) && retry_answered(stream, message)) {
        outcome_note(stream, !shadow_is_good(stream, message));
        send_again(stream, DP_FLAG_UPSTREAM_RESET, !stream->up->takes_turns);
        return true;
    }
    stream->attempt_at_ms = stream->hedge_at_ms = 0;
    shadow_drop_twin(stream);
    return false;
}

/* ---- an attempt ---- */

void stream_attempt_begins(struct stream *stream)
{
    uint64_t now_ms = stream_worker(stream)->loop.now_ms;
    uint32_t attempt_ms = stream->service ? resilience_of(stream)->attempt_ms : 0;

    if (!stream->complete || stream->answering || !stream->service)
        return;
    shadow_send_mirror(stream);
    if (stream->shadow)
        return;
    if (attempt_ms > 0)
        stream->attempt_at_ms = now_ms + attempt_ms;
    if (stream->hedge_ms > 0 && stream->keeps)
        stream->hedge_at_ms = now_ms + stream->hedge_ms;
    if ((attempt_ms > 0 || stream->hedge_at_ms > 0) && stream_reserve_timer(stream))
        stream_set_timer(stream);
}

static void attempt_expired(struct stream *stream)
{
    trace(stream_worker(stream), stream->record.connection, expired, DP_TIMER_ANSWER, 0);
    stream->attempt_at_ms = 0;
    if (stream->awaits_twin)
        shadow_drop_twin(stream);
    stream->awaits_twin = false;
    if (!stream_retry(stream, DP_RETRY_ATTEMPT_TIMEOUT, DP_FLAG_TIMEOUT))
        stream_fail(stream, DP_FLAG_TIMEOUT, NULL);
}

static uint64_t earlier(uint64_t one, uint64_t other)
{
    return other > 0 && other < one ? other : one;
}

uint64_t stream_attempt_due_ms(const struct stream *stream)
{
    return earlier(earlier(earlier(UINT64_MAX, stream->resume_at_ms), stream->attempt_at_ms),
                   stream->hedge_at_ms);
}

void stream_attempt_due(struct stream *stream)
{
    uint64_t now_ms = stream_worker(stream)->loop.now_ms;

    if (stream->resume_at_ms > 0 && stream->resume_at_ms <= now_ms) {
        resume(stream);
    } else if (stream->attempt_at_ms > 0 && stream->attempt_at_ms <= now_ms) {
        attempt_expired(stream);
    } else if (stream->hedge_at_ms > 0 && stream->hedge_at_ms <= now_ms) {
        stream->hedge_at_ms = 0;
        shadow_hedge(stream);
    }
}
