/* Reads heads: what does not follow the grammar, or what two readers might understand differently,
 * is refused. */
#include "l7/http1.h"

/* What the fields of a head say together. */
struct seen {
    unsigned hosts, options;
    bool has_length, is_chunked, is_http10;
    bool close, keep_alive; /* options of Connection */
    bool upgrade_option, upgrade;
    bool expects_continue, expects_other;
    uint64_t length;
    struct text host, host_name; /* the Host header, and it without the port */
    struct text coding;          /* Transfer-Encoding */
};

/* Of the message that was decoded last. */
static _Thread_local struct field fields[MAX_FIELDS];

static bool is_at(const struct cursor *in, struct text text)
{
    return (size_t)(in->end - in->at) >= text.size && memcmp(in->at, text.at, text.size) == 0;
}

static bool skip(struct cursor *in, struct text text)
{
    if (!is_at(in, text))
        return false;
    in->at += text.size;
    return true;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* ---- the line ---- */

/* Stores whether it is HTTP/1.0. */
static bool read_version(struct cursor *in, bool *http10, struct message *message)
{
    const char *at = in->at;

    if (in->end - at < 8 || memcmp(at, "HTTP/", 5) != 0 || !is_digit(at[5]) || at[6] != '.' ||
        !is_digit(at[7]))
        return http1_refuse(message, 400, "not a version of HTTP");
    if (at[5] != '1' || at[7] > '1')
        return http1_refuse(message, 505, "neither HTTP/1.0 nor HTTP/1.1");
    *http10 = at[7] == '0';
    in->at += 8;
    return true;
}

static bool read_request_line(struct cursor *in, struct message *message)
{
    const char *from = in->at;

    in->at = http1_token_end(from, in->end);
    message->method = text_between(from, in->at);
    if (message->method.size == 0 || !skip(in, TEXT(" ")))
        return http1_refuse(message, 400, "not a method");
    from = in->at;
    in->at = http1_target_end(from, in->end);
    message->path = text_between(from, in->at);
    if (message->path.size == 0 || !skip(in, TEXT(" ")))
        return http1_refuse(message, 400, "not a target");
    if (!read_version(in, &message->facts.http10, message))
        return false;
    return skip(in, TEXT("\r\n")) || http1_refuse(message, 400, "more than a version");
}

static bool read_status_line(struct cursor *in, struct message *message)
{
    const char *from;

    if (!read_version(in, &message->facts.http10, message))
        return false;
    from = in->at + 1;
    if (in->end - in->at < 4 || *in->at != ' ' || from[0] < '1' || from[0] > '5' ||
        !is_digit(from[1]) || !is_digit(from[2]))
        return http1_refuse(message, 400, "not a status");
    message->status = (uint32_t)(from[0] - '0') * 100 + (uint32_t)(from[1] - '0') * 10 +
                      (uint32_t)(from[2] - '0');
    in->at = from + 3;
    if (skip(in, TEXT("\r\n")))
        return true;
    from = in->at + 1;
    in->at = http1_value_end(in->at, in->end);
    if (in->at < from || from[-1] != ' ')
        return http1_refuse(message, 400, "not a status");
    message->reason = text_between(from, in->at);
    return skip(in, TEXT("\r\n")) || http1_refuse(message, 400, "not a reason phrase");
}

bool http1_read_line(struct cursor *in, bool response, struct message *message)
{
    return response ? read_status_line(in, message) : read_request_line(in, message);
}

/* ---- fields ---- */

static bool is_at_space(const struct cursor *in)
{
    return in->at < in->end && (*in->at == ' ' || *in->at == '\t');
}

static bool refuse_name(const struct cursor *in, struct message *message)
{
    return http1_refuse(message, 400, is_at_space(in) ? "a folded line" : "a field has no name");
}

static bool read_field(struct cursor *in, struct field *field, struct message *message)
{
    const char *from = in->at, *to;

    in->at = http1_token_end(from, in->end);
    field->name = text_between(from, in->at);
    if (field->name.size == 0)
        return refuse_name(in, message);
    if (!skip(in, TEXT(":")))
        return http1_refuse(message, 400, "a field's name has no colon behind it");
    while (is_at_space(in))
        in->at++;
    from = in->at;
    in->at = to = http1_value_end(from, in->end);
    while (to > from && (to[-1] == ' ' || to[-1] == '\t'))
        to--;
    field->value = text_between(from, to);
    return skip(in, TEXT("\r\n")) || http1_refuse(message, 400, "a control character in a field");
}

typedef bool interpret(struct seen *seen, const struct field *field, struct message *message);

/* Reads fields until the empty line. Where that is not there yet, one of them is wrong. */
static bool read_fields(struct cursor *in, const struct limits *limits, interpret *interpret,
                        struct seen *seen, struct message *message)
{
    uint32_t most = limits->fields < MAX_FIELDS ? limits->fields : MAX_FIELDS, count = 0;

    for (; !skip(in, TEXT("\r\n")); count++) {
        if (count == most)
            return http1_refuse(message, 431, "too many fields");
        if (!read_field(in, &fields[count], message) || !interpret(seen, &fields[count], message))
            return false;
    }
    message->fields = fields;
    message->field_count = count;
    return true;
}

static bool interpret_connection(struct seen *seen, struct text list, struct message *message)
{
    struct text option;

    while (http1_next_element(&list, &option)) {
        if (++seen->options > MAX_CONNECTION_OPTIONS)
            return http1_refuse(message, 400, "too many options in Connection");
        if (!http1_is_token(option))
            return http1_refuse(message, 400, "not an option in Connection");
        seen->close |= http1_is(option, TEXT("close"));
        seen->keep_alive |= http1_is(option, TEXT("keep-alive"));
        seen->upgrade_option |= http1_is(option, TEXT("upgrade"));
    }
    return true;
}

static bool interpret_length(struct seen *seen, struct text value, struct message *message)
{
    if (seen->has_length)
        return http1_refuse(message, 400, "more than one Content-Length");
    seen->has_length = true;
    return http1_number(value, &seen->length) || http1_refuse(message, 400, "not a Content-Length");
}

static bool interpret_host(struct seen *seen, struct text value, struct message *message)
{
    if (seen->hosts++ > 0)
        return http1_refuse(message, 400, "more than one Host");
    seen->host = value;
    return http1_authority(value, &seen->host_name) || http1_refuse(message, 400, "not a Host");
}

/* The status for a list of codings that is not "chunked" alone: 501 where it might be understood.
 */
static uint16_t refuse_coding(struct text list)
{
    struct text coding;
    bool chunked = false;
    unsigned count = 0;

    for (; http1_next_element(&list, &coding); count++) {
        if (!http1_is_token(coding) || chunked) /* chunked is the last one, and once */
            return 400;
        chunked = text_equal_folded(coding, TEXT("chunked"));
    }
    return count == 0 || (chunked && count == 1) ? 400 : 501;
}

static bool interpret_coding(struct seen *seen, struct text value, struct message *message)
{
    if (seen->coding.at)
        return http1_refuse(message, 400, "more than one Transfer-Encoding");
    seen->coding = value;
    seen->is_chunked = text_equal_folded(value, TEXT("chunked"));
    return seen->is_chunked ||
           http1_refuse(message, refuse_coding(value), "a Transfer-Encoding other than chunked");
}

/* A proxy that lets a connection become HTTP/2 or TLS knows nothing any more of the requests on it,
 * which by then no rule applies to. */
static bool may_become(struct text list)
{
    struct text protocol;
    bool may = false;

    while (http1_next_element(&list, &protocol)) {
        const char *slash = memchr(protocol.at, '/', protocol.size);
        struct text name =
            slash ? text_between(protocol.at, slash) : protocol; /* without its version */

        if (text_equal_folded(name, TEXT("h2c")) || text_equal_folded(name, TEXT("h2")) ||
            text_equal_folded(name, TEXT("http")) || text_equal_folded(name, TEXT("tls")))
            return false;
        may = true;
    }
    return may;
}

static bool interpret_field(struct seen *seen, const struct field *field, struct message *message)
{
    switch (http1_header(field->name)) {
    case HEADER_CONNECTION:
        return interpret_connection(seen, field->value, message);
    case HEADER_CONTENT_LENGTH:
        return interpret_length(seen, field->value, message);
    case HEADER_EXPECT:
        seen->expects_continue = text_equal_folded(field->value, TEXT("100-continue"));
        seen->expects_other |= !seen->expects_continue;
        return true;
    case HEADER_HOST:
        /* Of an answer it means nothing. */
        return message->kind != MESSAGE_REQUEST || interpret_host(seen, field->value, message);
    case HEADER_TRANSFER_ENCODING:
        return interpret_coding(seen, field->value, message);
    case HEADER_UPGRADE:
        seen->upgrade = may_become(field->value);
        return true;
    case HEADER_DISGUISED:
        return http1_refuse(message, 400, "a field's name has an underscore for a hyphen");
    default:
        return true;
    }
}

/* ---- what it means ---- */

static bool check_framing(const struct seen *seen, struct message *message)
{
    if (seen->is_chunked && seen->has_length)
        return http1_refuse(message, 400, "Content-Length and Transfer-Encoding");
    if (seen->is_chunked && message->facts.http10)
        return http1_refuse(message, 400, "Transfer-Encoding in HTTP/1.0");
    return true;
}

static void frame(struct decoder *decoder, struct message *message, bool chunked, uint64_t size)
{
    message->has_body = chunked || size > 0;
    message->body_size = chunked ? UINT64_MAX : size;
    decoder->plain = message->has_body && !chunked;
    decoder->left = chunked ? 0 : size;
}

/* http://authority, http://authority/path, http://authority?query is refused: it has no "/" that
 * the path could begin with. */
static bool split_absolute(struct message *message)
{
    static const struct text scheme = TEXT("http://");
    const char *end = message->path.at + message->path.size, *from = message->path.at + scheme.size;
    const char *slash;

    if (message->path.size < scheme.size ||
        !text_equal_folded(text_between(message->path.at, from), scheme))
        return http1_refuse(message, 400, "not a target");
    message->target = message->path;
    slash = memchr(from, '/', (size_t)(end - from));
    message->authority = text_between(from, slash ? slash : end);
    if (!http1_authority(message->authority, &message->service))
        return http1_refuse(message, 400, "not a host in the target");
    if (slash)
        message->path = text_between(slash, end);
    else
        message->path = text_equal(message->method, TEXT("OPTIONS")) ? TEXT("*") : TEXT("/");
    return true;
}

static bool split_target(const struct seen *seen, struct message *message)
{
    message->authority = seen->host;
    message->service = seen->host_name;
    if (text_equal(message->method, TEXT("CONNECT"))) { /* host:port */
        message->authority = message->target = message->path;
        message->path = TEXT("*");
        return http1_authority(message->authority, &message->service) ||
               http1_refuse(message, 400, "not a target of CONNECT");
    }
    if (message->path.at[0] == '/')
        return true;
    if (text_equal(message->path, TEXT("*")))
        return text_equal(message->method, TEXT("OPTIONS")) ||
               http1_refuse(message, 400, "not a target");
    return split_absolute(message);
}

bool http1_is_idempotent(struct text method)
{
    static const struct text idempotent[] = {TEXT("GET"),    TEXT("HEAD"),    TEXT("PUT"),
                                             TEXT("DELETE"), TEXT("OPTIONS"), TEXT("TRACE")};

    for (size_t i = 0; i < sizeof idempotent / sizeof *idempotent; i++)
        if (text_equal(method, idempotent[i]))
            return true;
    return false;
}

static bool conclude_request(struct decoder *decoder, const struct seen *seen,
                             struct message *message)
{
    struct facts *facts = &message->facts;
    bool connects = text_equal(message->method, TEXT("CONNECT"));

    if (!check_framing(seen, message))
        return false;
    if (seen->hosts == 0 && !facts->http10)
        return http1_refuse(message, 400, "no Host");
    if (!split_target(seen, message))
        return false;
    frame(decoder, message, seen->is_chunked, seen->has_length ? seen->length : 0);
    if (message->has_body && (connects || text_equal(message->method, TEXT("TRACE"))))
        return http1_refuse(message, 400, "a body where there is none");
    if (seen->expects_other && !facts->http10)
        return http1_refuse(message, 417, "an Expect other than 100-continue");
    facts->head = text_equal(message->method, TEXT("HEAD"));
    facts->connect = connects;
    /* Behind CONNECT comes what is for the tunnel, even if there will be none. */
    facts->keep_alive = !seen->close && !connects && (!facts->http10 || seen->keep_alive);
    /* With a body it is none: some servers (llhttp) take that for what is said in the tunnel. */
    facts->upgrade = seen->upgrade && seen->upgrade_option && !facts->http10 && !message->has_body;
    message->last = !facts->keep_alive;
    message->idempotent = http1_is_idempotent(message->method);
    message->expects_continue = seen->expects_continue && message->has_body && !facts->http10;
    return true;
}

/* No body, whatever its fields say. That of HEAD and of 304 may say how large it would be. */
static bool frame_nothing(struct decoder *decoder, const struct seen *seen, struct message *message)
{
    bool announced = seen->is_chunked || (seen->has_length && seen->length > 0);

    frame(decoder, message, false, 0);
    if (message->status < 200) {
        message->last = false;
        return !announced || http1_refuse(message, 400, "1xx with a body");
    }
    if (message->status != STATUS_NO_CONTENT)
        message->body_size = seen->has_length ? seen->length : UINT64_MAX;
    else if (announced)
        message->last = true; /* there may be one nevertheless, which is no answer to anybody */
    return true;
}

static bool frame_response(struct decoder *decoder, const struct seen *seen,
                           struct message *message)
{
    if (decoder->facts.head || message->status < 200 || message->status == STATUS_NO_CONTENT ||
        message->status == STATUS_NOT_MODIFIED)
        return frame_nothing(decoder, seen, message);
    frame(decoder, message, seen->is_chunked, seen->has_length ? seen->length : UINT64_MAX);
    message->until_close = !seen->is_chunked && !seen->has_length;
    message->last |= message->until_close;
    return true;
}

/* RFC 9110, 9.3.6: whatever it says of a body, there is none. */
static bool conclude_connect(struct decoder *decoder, struct message *message)
{
    message->facts = (struct facts){.http10 = false};
    message->succeeded = message->upgraded = true;
    message->last = false;
    frame(decoder, message, false, 0);
    return true;
}

static bool conclude_response(struct decoder *decoder, const struct seen *seen,
                              struct message *message)
{
    bool http10 = message->facts.http10;

    if (decoder->facts.connect && message->status / 100 == 2)
        return conclude_connect(decoder, message);
    if (!check_framing(seen, message))
        return false;
    message->last = seen->close || (http10 && !seen->keep_alive);
    message->facts = (struct facts){.http10 = false}; /* they are of requests */
    message->succeeded = message->status < 400;
    if (message->status == STATUS_SWITCHING_PROTOCOLS) {
        if (!decoder->facts.upgrade || !seen->upgrade || !seen->upgrade_option || http10)
            return http1_refuse(message, 400, "101 that was not asked for");
        message->upgraded = true;
    } else if (message->status < 200) {
        message->kind = MESSAGE_INTERIM;
    }
    return frame_response(decoder, seen, message);
}

bool http1_read_head(struct cursor *in, struct decoder *decoder, struct message *message)
{
    const char *from = in->at;
    struct seen seen = {.hosts = 0};

    if (!http1_read_line(in, decoder->response, message))
        return false;
    if ((size_t)(in->at - from) > (size_t)decoder->limits->line_bytes + 2)
        return http1_refuse(message, 414, "too long a line");
    if (!read_fields(in, decoder->limits, interpret_field, &seen, message))
        return false;
    return decoder->response ? conclude_response(decoder, &seen, message)
                             : conclude_request(decoder, &seen, message);
}

/* RFC 9110, 6.5.1: what frames, routes or authenticates a message comes before its body. */
static bool interpret_trailer(struct seen *seen, const struct field *field, struct message *message)
{
    (void)seen;
    switch (http1_header(field->name)) {
    case HEADER_CONTENT_LENGTH:
    case HEADER_HOST:
    case HEADER_TRANSFER_ENCODING:
    case HEADER_DISGUISED:
        return http1_refuse(message, 400, "a trailer that is none");
    default:
        return true;
    }
}

bool http1_read_trailers(struct cursor *in, const struct limits *limits, struct message *message)
{
    return read_fields(in, limits, interpret_trailer, NULL, message);
}
