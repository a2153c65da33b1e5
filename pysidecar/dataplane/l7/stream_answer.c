#include "l7/grpc.h"
#include "l7/outcome.h"
#include "l7/pool.h"
#include "l7/stream_parts.h"
#include "l7/uplink.h"

/* ---- what comes ---- */

/* Where the client does not take what there is already, nothing more is read until it does. */
static void hold_back(struct stream *stream)
{
    if (!stream->ended && stream->down->is_behind(stream))
        stream->up->hold(stream);
}

/* False: it failed. */
static bool pass(struct stream *stream, enum dp_flag why)
{
    if (why == DP_FLAG_NONE)
        return true;
    stream_fail(stream, why, NULL);
    return false;
}

/* A call of gRPC has its status at the end, unless the answer is nothing else. */
static void note_head(struct stream *stream, const struct message *message)
{
    if (!stream->facts.grpc) {
        stream_note_status(stream, message->status, message->succeeded);
        outcome_note(stream, stream->record.status_class == 5);
        return;
    }
    stream->has_grpc_status = message->has_grpc_status || message->status != 200;
    stream->grpc_status =
        message->has_grpc_status ? message->grpc_status : grpc_status_for_http(message->status);
    stream_note_first_byte(stream);
}

static void note_end(struct stream *stream, const struct message *message)
{
    if (!stream->facts.grpc)
        return;
    if (message->has_grpc_status)
        stream_note_grpc(stream, message->grpc_status);
    else
        stream_note_grpc(stream, stream->has_grpc_status ? stream->grpc_status : GRPC_UNKNOWN);
    outcome_note(stream, stream->record.status_class == 5);
}

static void response_head(struct stream *stream, const struct message *message, size_t size)
{
    struct downstream *downstream = stream->downstream;

    if (message->kind == MESSAGE_INTERIM) {
        if (!stream->facts.http10 && pass(stream, stream->down->head(stream, message, size)))
            hold_back(stream);
        return;
    }
    if (message->upgraded && !stream->complete) { /* what is left of it would get lost */
        stream_fail(stream, DP_FLAG_MALFORMED_RESPONSE, NULL);
        return;
    }
    if (stream_drop_answer(stream, message, size))
        return;
    note_head(stream, message);
    if (message->service_failed)
        stream_set_flag(stream, DP_FLAG_SERVICE_ERROR);
    if (!pass(stream, stream->down->head(stream, message, size)))
        return;
    stream->answering = true;
    if (stream->ended)
        return;
    buffer_release(&stream_worker(stream)->streams->blocks, &stream->request);
    stream->keeps = false;
    if (message->upgraded)
        downstream_upgrade(downstream, stream);
}

static void response_data(struct stream *stream, const struct message *message)
{
    if (pass(stream, stream->down->data(stream, message)))
        hold_back(stream);
}

static void response_end(struct stream *stream, const struct message *message, size_t size)
{
    struct downstream *downstream = stream->downstream;

    if (!stream->answering) /* of an interim answer */
        return;
    note_end(stream, message);
    if (!pass(stream, stream->down->end(stream, message, size)) || stream->ended)
        return;
    if (!stream->complete && stream->down->goes_on && stream->up->goes_on(stream)) {
        stream->answered = true; /* whoever answers early may still want the rest */
        return;
    }
    stream_end(stream, stream->complete);
    if (stream->direct && !downstream->own)
        downstream->closing = true;
    downstream_answered(downstream);
}

void stream_response(struct stream *stream, enum codec_event event, const struct message *message,
                     size_t size)
{
    if (event == CODEC_HEAD)
        response_head(stream, message, size);
    else if (event == CODEC_DATA)
        response_data(stream, message);
    else
        response_end(stream, message, size);
}

void stream_response_spliced(struct stream *stream, size_t bytes)
{
    stream->record.bytes_received += bytes;
}

void stream_upgraded(struct stream *stream)
{
    stream_set_flag(stream, DP_FLAG_UPGRADED);
    stream_end(stream, false);
}

/* ---- what does not ---- */

/* Whether the request may be sent again: it was kept, nothing of an answer came, and either nothing
 * of it was sent, or the connection had been idle, which the upstream closed then. */
static bool may_be_sent_again(const struct stream *stream, enum dp_flag why)
{
    return why == DP_FLAG_UPSTREAM_RESET && stream->keeps && stream->complete &&
           !stream->answering && stream->reused && !stream->retried &&
           (stream->up->is_unsent(stream) || stream->idempotent) &&
           stream->up->is_unanswered(stream);
}

/* Whether the client can tell by the end of its connection, and knows best, whether to send it
 * again: as on any connection that was kept open, and that the server does not want any more. */
static bool is_told_by_end(const struct stream *stream, enum dp_flag why)
{
    return why == DP_FLAG_UPSTREAM_RESET && stream->direct && stream->reused &&
           !stream->answering && stream->up->is_unanswered(stream);
}

static void end_unanswered(struct stream *stream, enum dp_flag why)
{
    struct downstream *downstream = stream->downstream;

    stream_set_flag(stream, why);
    downstream->closing = true;
    stream_end(stream, false);
    downstream_answered(downstream);
}

/* The endpoint is picked anew. */
static void send_again(struct stream *stream, enum dp_flag why)
{
    stream_set_flag(stream, DP_FLAG_RETRIED);
    stream->retried = true;
    stream_leave_pool(stream, false);
    stream->tried_count--; /* the endpoint is not to blame */
    stream_try_next(stream, why);
}

void stream_uplink_lost(struct stream *stream, enum dp_flag why)
{
    struct pool *pool = stream->pool;

    if (is_told_by_end(stream, why)) {
        end_unanswered(stream, why);
        return;
    }
    if (!may_be_sent_again(stream, why)) {
        if (why != DP_FLAG_UPSTREAM_RESET || stream->answering ||
            !stream_retry(stream,
                          stream->up->is_unsent(stream) ? DP_RETRY_RESET_UNSENT : DP_RETRY_RESET,
                          why))
            stream_fail(stream, why, NULL);
        return;
    }
    pool_renew(pool); /* others that are idle may be dead, too */
    send_again(stream, why);
}

/* The client gets the same, where its protocol can say so. */
static bool pass_reset(struct stream *stream, uint32_t code)
{
    struct downstream *downstream = stream->downstream;

    stream->reset_code = code;
    if (!stream->down->pass_reset || !stream->down->pass_reset(stream, code))
        return false;
    stream_set_flag(stream, DP_FLAG_UPSTREAM_RESET);
    stream_end(stream, false);
    downstream_answered(downstream);
    return true;
}

/* How often it is sent again. A connection that goes away may leave more behind than the next one
 * takes, as nginx does, and each time that costs a connection; what several new ones get before
 * they say how little they take may be refused by each. Who refuses is asked for less. */
static unsigned most_unprocessed(enum processed processed)
{
    static const uint8_t most[] = {[PROCESSED_REFUSED] = 1, [PROCESSED_AWAY] = 8};

    return most[processed];
}

void stream_uplink_reset(struct stream *stream, uint32_t code, enum processed processed)
{
    enum dp_retry why = processed == PROCESSED_PERHAPS ? DP_RETRY_RESET : DP_RETRY_REFUSED;

    if (!stream->answering && (processed != PROCESSED_AWAY || stream->twin) &&
        stream_retry(stream, why, DP_FLAG_UPSTREAM_RESET))
        return;
    if (stream->keeps && !stream->answering && !stream->shadow &&
        stream->unprocessed < most_unprocessed(processed) &&
        (processed == PROCESSED_AWAY || stream_spend_retry(stream))) {
        stream->unprocessed++;
        send_again(stream, DP_FLAG_UPSTREAM_RESET);
    } else if (stream->answered || !pass_reset(stream, code)) {
        stream_fail(stream, DP_FLAG_UPSTREAM_RESET, NULL);
    }
}

void stream_uplink_sent(struct stream *stream)
{
    stream->down->update(stream);
}

void stream_downstream_sent(struct stream *stream)
{
    if (stream->uplink)
        stream->up->go_on(stream);
}
