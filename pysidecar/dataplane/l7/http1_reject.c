/* Answers of our own. */
#include "l7/http1.h"
#include "l7/http1_write.h"

/* By status. */
static const struct text phrases[600] = {
    [100] = TEXT("Continue"),
    [102] = TEXT("Processing"),
    [103] = TEXT("Early Hints"),
    [200] = TEXT("OK"),
    [201] = TEXT("Created"),
    [202] = TEXT("Accepted"),
    [203] = TEXT("Non-Authoritative Information"),
    [204] = TEXT("No Content"),
    [205] = TEXT("Reset Content"),
    [206] = TEXT("Partial Content"),
    [207] = TEXT("Multi-Status"),
    [208] = TEXT("Already Reported"),
    [226] = TEXT("IM Used"),
    [300] = TEXT("Multiple Choices"),
    [301] = TEXT("Moved Permanently"),
    [302] = TEXT("Found"),
    [303] = TEXT("See Other"),
    [304] = TEXT("Not Modified"),
    [307] = TEXT("Temporary Redirect"),
    [308] = TEXT("Permanent Redirect"),
    [400] = TEXT("Bad Request"),
    [401] = TEXT("Unauthorized"),
    [402] = TEXT("Payment Required"),
    [403] = TEXT("Forbidden"),
    [404] = TEXT("Not Found"),
    [405] = TEXT("Method Not Allowed"),
    [406] = TEXT("Not Acceptable"),
    [407] = TEXT("Proxy Authentication Required"),
    [408] = TEXT("Request Timeout"),
    [409] = TEXT("Conflict"),
    [410] = TEXT("Gone"),
    [411] = TEXT("Length Required"),
    [412] = TEXT("Precondition Failed"),
    [413] = TEXT("Content Too Large"),
    [414] = TEXT("URI Too Long"),
    [415] = TEXT("Unsupported Media Type"),
    [416] = TEXT("Range Not Satisfiable"),
    [417] = TEXT("Expectation Failed"),
    [421] = TEXT("Misdirected Request"),
    [422] = TEXT("Unprocessable Content"),
    [423] = TEXT("Locked"),
    [424] = TEXT("Failed Dependency"),
    [425] = TEXT("Too Early"),
    [426] = TEXT("Upgrade Required"),
    [428] = TEXT("Precondition Required"),
    [429] = TEXT("Too Many Requests"),
    [431] = TEXT("Request Header Fields Too Large"),
    [451] = TEXT("Unavailable For Legal Reasons"),
    [500] = TEXT("Internal Server Error"),
    [501] = TEXT("Not Implemented"),
    [502] = TEXT("Bad Gateway"),
    [503] = TEXT("Service Unavailable"),
    [504] = TEXT("Gateway Timeout"),
    [505] = TEXT("HTTP Version Not Supported"),
    [506] = TEXT("Variant Also Negotiates"),
    [507] = TEXT("Insufficient Storage"),
    [508] = TEXT("Loop Detected"),
    [511] = TEXT("Network Authentication Required"),
};

/* By enum dp_flag. */
static const struct {
    uint16_t status;
    struct text word;
} failures[DP_FLAGS] = {
    [DP_FLAG_NO_ROUTE] = {404, TEXT("no_route")},
    [DP_FLAG_NO_ENDPOINT] = {503, TEXT("no_endpoint")},
    [DP_FLAG_CONNECT_FAILED] = {502, TEXT("connect_failed")},
    [DP_FLAG_CONNECT_TIMEOUT] = {504, TEXT("connect_timeout")},
    [DP_FLAG_TIMEOUT] = {504, TEXT("timeout")},
    [DP_FLAG_UPSTREAM_RESET] = {502, TEXT("upstream_reset")},
    [DP_FLAG_OVERLOAD] = {503, TEXT("overload")},
    [DP_FLAG_MALFORMED_REQUEST] = {400, TEXT("malformed_request")},
    [DP_FLAG_MALFORMED_RESPONSE] = {502, TEXT("malformed_response")},
    [DP_FLAG_REFUSED] = {405, TEXT("refused")},
    [DP_FLAG_LOOP] = {508, TEXT("loop")},
    [DP_FLAG_RATE_LIMITED] = {429, TEXT("rate_limited")},
    [DP_FLAG_FAULT_ABORT] = {503, TEXT("fault_abort")},
    [DP_FLAG_DRAIN_LIMIT] = {503, TEXT("drain_limit")},
};

struct text http1_phrase(uint32_t status)
{
    bool known = status < sizeof phrases / sizeof *phrases && phrases[status].size > 0;

    return known ? phrases[status] : TEXT("");
}

uint16_t http1_reject_status(const struct rejection *rejection)
{
    uint16_t status = rejection->http_status;

    if (status == 0)
        status = failures[rejection->flag].status;
    return status > 0 ? status : 500;
}

struct text http1_reject_word(enum dp_flag flag)
{
    return failures[flag].word;
}

static void put_reject_head(struct writer *writer, uint16_t status, struct text word)
{
    put(writer, TEXT("HTTP/1.1 "));
    put_number(writer, status);
    put(writer, TEXT(" "));
    put(writer, http1_phrase(status));
    put(writer, TEXT("\r\nContent-Type: text/plain\r\n"));
    if (status == 405) /* RFC 9110, 15.5.6: must say which are */
        put(writer, TEXT("Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n"));
    if (word.size > 0)
        put_field(writer, TEXT("x-sidecar-reason"), word);
}

size_t http1_reject(const struct facts *facts, uint64_t id, const struct rejection *rejection,
                    uint8_t *to, size_t room)
{
    struct writer writer = writer_to(to, room);
    uint16_t status = http1_reject_status(rejection);
    struct text body = rejection->reason.size > 0 ? rejection->reason : http1_phrase(status);

    (void)id;
    put_reject_head(&writer, status, failures[rejection->flag].word);
    if (rejection->close || !facts->keep_alive)
        put(&writer, TEXT("Connection: close\r\n"));
    else if (facts->http10)
        put(&writer, TEXT("Connection: keep-alive\r\n"));
    put(&writer, TEXT("Content-Length: "));
    put_number(&writer, (uint64_t)body.size + 1);
    put(&writer, TEXT("\r\n\r\n"));
    if (!facts->head) {
        put(&writer, body);
        put(&writer, TEXT("\n"));
    }
    if (rejection->status)
        *rejection->status = status;
    return written(&writer, to);
}
