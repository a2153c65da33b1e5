#include "l7/outcome.h"

#include "l7/downstream.h"
#include "upstream/outliers.h"

void outcome_note(struct stream *stream, bool failed)
{
    const struct loop *loop = &stream->downstream->session->worker->loop;
    uint64_t first_byte_ns = stream->record.first_byte_ns;
    /* Calls of gRPC are noted when they end, which may be long after their first byte. */
    uint64_t until_ns = first_byte_ns ? stream->began_ns + first_byte_ns : loop->now_ns;
    struct attempt attempt = {.failed = failed};

    if (until_ns > stream->tried_ns)
        attempt.latency_ns = until_ns - stream->tried_ns;
    if (!stream->service || stream->tried_count == 0)
        return;
    if (outliers_note(stream->service, stream->tried[stream->tried_count - 1], &attempt,
                      loop->now_ms))
        stream->record.flags |= 1u << DP_FLAG_EJECTED;
}

/* A timeout while there is no connection yet is not: the request waited for its turn. */
void outcome_note_failure(struct stream *stream, enum dp_flag why)
{
    switch (why) {
    case DP_FLAG_CONNECT_FAILED:
    case DP_FLAG_CONNECT_TIMEOUT:
        if (stream->pool)
            outcome_note(stream, true);
        break;
    case DP_FLAG_TIMEOUT:
    case DP_FLAG_UPSTREAM_RESET:
    case DP_FLAG_MALFORMED_RESPONSE:
        if (stream->uplink)
            outcome_note(stream, true);
        break;
    default:
        break;
    }
}
