/* Writes a request's line of the access log: what json.dumps() makes of describe_request() in
 * access_log.py. */
#include "api/dataplane.h"
#include "api/json.h"
#include "l7/message.h"

/* HTTP's path, without its query unless that is asked for; other protocols' has none. */
static char *put_path(char *at, const struct dp_request *request, bool query)
{
    size_t size = strnlen(request->path, DP_PATH_BYTES);
    bool is_http = protocol_family(request->protocol) == DP_HTTP1;
    const char *mark = !query && is_http ? memchr(request->path, '?', size) : NULL;

    return json_text(at, ", \"path\": ", request->path,
                     mark ? (size_t)(mark - request->path) : size);
}

static char *put_flags(char *at, const struct dp_log_texts *texts, uint32_t flags)
{
    const char *before = "";

    at = json_put(at, ", \"flags\": [");
    for (; flags; flags &= flags - 1) {
        const char *flag = texts->flags[__builtin_ctz(flags)];

        if (!flag)
            continue;
        at = json_name(at, before, flag);
        before = ", ";
    }
    return json_put(at, "]");
}

/* Only where there is a trace: most logs know of none. */
static char *put_trace(char *at, const struct dp_request *request)
{
    at = json_digits(at, ", \"trace_id\": ", request->trace_id, sizeof request->trace_id);
    return json_digits(at, ", \"span_id\": ", request->span_id, sizeof request->span_id);
}

size_t dp_request_line(const struct dp_log_texts *texts, const struct dp_request *request,
                       int query, char *line)
{
    char *at = line;

    at = json_time(json_put(at, "{\"time\": \""), request->began_ns);
    at = json_put(at, "\", \"type\": \"request\"");
    at = json_name(at, ", \"protocol\": ", texts->protocols[request->protocol]);
    at = json_name(at, ", \"direction\": ", texts->directions[request->direction]);
    at = json_address(at, ", \"source\": ", &request->source);
    at = json_number(json_put(at, ", \"connection\": "), request->connection);
    at = json_text(at, ", \"service\": ", request->service,
                   strnlen(request->service, DP_SERVICE_BYTES));
    at =
        json_text(at, ", \"method\": ", request->method, strnlen(request->method, DP_METHOD_BYTES));
    at = put_path(at, request, query);
    at = json_known(at, ", \"status\": ", request->status, request->answered);
    at = json_address(at, ", \"upstream\": ", &request->upstream);
    at = json_number(json_put(at, ", \"attempts\": "), request->attempts);
    at = json_number(json_put(at, ", \"bytes_sent\": "), request->bytes_sent);
    at = json_number(json_put(at, ", \"bytes_received\": "), request->bytes_received);
    at = json_milliseconds(json_put(at, ", \"duration_ms\": "), request->duration_ns);
    at = json_put(at, ", \"first_byte_ms\": ");
    at = request->first_byte_ns ? json_milliseconds(at, request->first_byte_ns)
                                : json_put(at, "null");
    at = put_flags(at, texts, request->flags);
    at = put_trace(at, request);
    at = json_put(at, "}\n");
    return (size_t)(at - line);
}
