/* Writes a line of the access log: what json.dumps() makes of describe_connection() in
 * access_log.py. */
#include "api/dataplane.h"
#include "api/json.h"

static char *put_error(char *at, const struct dp_log_texts *texts, const struct dp_record *record)
{
    int32_t error = record->error;

    if (!texts->ends[record->end])
        return json_put(at, "null");
    at = json_name(at, "", texts->ends[record->end]);
    if (error == 0)
        return at;
    at = json_put(at - 1, ": ");
    if (error > 0 && error < DP_ERRNOS && texts->errnos[error])
        at = json_put(at, texts->errnos[error]);
    else
        at = json_number(error < 0 ? json_put(at, "-") : at,
                         error < 0 ? -(uint64_t)error : (uint64_t)error);
    *at++ = '"';
    return at;
}

size_t dp_log_line(const struct dp_log_texts *texts, const struct dp_record *record, char *line)
{
    char *at = line;

    at = json_time(json_put(at, "{\"time\": \""), record->opened_ns);
    at = json_put(at, "\", \"type\": \"connection\"");
    at = json_name(at, ", \"direction\": ", texts->directions[record->direction]);
    at = json_name(at, ", \"transport\": ", texts->transports[record->transport]);
    at = json_address(at, ", \"source\": ", &record->source);
    at = json_address(at, ", \"original_destination\": ", &record->original_destination);
    at = json_address(at, ", \"upstream\": ", &record->upstream);
    at = json_name(at, ", \"action\": ", texts->actions[record->action]);
    at = json_name(at, ", \"path\": ", texts->paths[record->path]);
    at = json_number(json_put(at, ", \"bytes_sent\": "), record->bytes_sent);
    at = json_number(json_put(at, ", \"bytes_received\": "), record->bytes_received);
    at = json_put(at, ", \"rtt_ms\": ");
    at = record->rtt_us ? json_thousandths(at, record->rtt_us) : json_put(at, "null");
    at = json_milliseconds(json_put(at, ", \"duration_ms\": "), record->duration_ns);
    at = json_known(at, ", \"pid\": ", record->pid, record->pid != 0);
    at = json_known(at, ", \"uid\": ", record->uid, record->uid != UINT32_MAX);
    at = json_text(at, ", \"process\": ", record->command,
                   strnlen(record->command, sizeof record->command));
    at = put_error(json_put(at, ", \"error\": "), texts, record);
    at = json_put(at, "}\n");
    return (size_t)(at - line);
}
