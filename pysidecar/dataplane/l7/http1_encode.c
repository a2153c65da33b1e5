/* Writes messages. What says where a message ends, and what is meant for one connection only, is
 * written anew and never passed on. */
#include "l7/http1.h"
#include "l7/http1_write.h"
#include "l7/http1_passing.h"

/* As it came, where it has one space behind the colon, as most have. */
static void put_field_of(struct writer *writer, const struct field *field)
{
    struct text name = field->name, value = field->value;

    if (value.at == name.at + name.size + 2 && value.at[-1] == ' ') {
        put(writer, text_between(name.at, value.at + value.size));
        put(writer, TEXT("\r\n"));
    } else {
        put_field(writer, name, value);
    }
}

static bool is_cookie(const struct field *field)
{
    return field->name.size == 6 && http1_is(field->name, TEXT("cookie"));
}

/* As one (RFC 9113, 8.2.3). */
static void put_cookies(struct writer *writer, struct passing *passing)
{
    const struct message *message = passing->message;
    struct text before = TEXT("Cookie: ");

    for (uint32_t i = 0; i < message->field_count; i++) {
        if (!is_cookie(&message->fields[i]) || !passing_takes(passing, &message->fields[i]))
            continue;
        put(writer, before);
        put(writer, message->fields[i].value);
        before = TEXT("; ");
    }
    if (before.size == 2)
        put(writer, TEXT("\r\n"));
}

static void put_fields(struct writer *writer, struct passing *passing)
{
    const struct message *message = passing->message;

    for (uint32_t i = 0; i < message->field_count; i++)
        if ((!message->splits_cookie || !is_cookie(&message->fields[i])) &&
            passing_takes(passing, &message->fields[i]))
            put_field_of(writer, &message->fields[i]);
    if (message->splits_cookie)
        put_cookies(writer, passing);
}

/* One of our own. What would be more than a field, or frame the message, is none. */
static void put_own_field(struct writer *writer, struct text name, struct text value)
{
    if (http1_is_token(name) && http1_is_value(value) && http1_header(name) == HEADER_OTHER)
        put_field(writer, name, value);
}

static void put_rewritten(struct writer *writer, const struct adjustment *adjustment)
{
    const struct rewrite *rewrite = adjustment->rewrite;

    if (!rewrite)
        return;
    for (uint32_t i = 0; i < rewrite->set_count; i++)
        put_own_field(writer, rewrite->set[i].name, rewrite->set[i].value);
    if (rewrite->original_destination.size > 0 && adjustment->original_destination.size > 0)
        put_own_field(writer, rewrite->original_destination, adjustment->original_destination);
}

static void put_trace(struct writer *writer, const struct passing *passing)
{
    const struct field *field;
    uint32_t at = 0;

    while ((field = passing_next_of_trace(passing, &at)))
        put_field(writer, field->name, field->value);
}

/* ---- requests ---- */

/* The path, unless whom the client connected to may be a proxy, which is to have what it was sent.
 */
static void put_target(struct writer *writer, const struct message *message,
                       const struct adjustment *adjustment)
{
    const struct rewrite *rewrite = adjustment->rewrite;

    if (rewrite && passing_rewrites_path(rewrite, message->path))
        passing_put_path(writer, message->path, rewrite);
    else if (adjustment->direct && message->target.size > 0 && (!rewrite || message->facts.connect))
        put(writer, message->target);
    else
        put(writer, message->path);
}

/* Options of Connection: as many as there are. */
static void put_options(struct writer *writer, const struct text *options, unsigned count)
{
    struct text before = TEXT("Connection: ");

    for (unsigned i = 0; i < count; i++, before = TEXT(", ")) {
        put(writer, before);
        put(writer, options[i]);
    }
    if (count > 0)
        put(writer, TEXT("\r\n"));
}

static void put_connection_to_upstream(struct writer *writer, const struct passing *passing)
{
    struct text options[3];
    unsigned count = 0;

    if (passing->takes_trailers)
        put(writer, TEXT("TE: trailers\r\n"));
    if (passing->upgrade)
        options[count++] = TEXT("Upgrade");
    if (passing->takes_trailers)
        options[count++] = TEXT("TE");
    if (passing->close)
        options[count++] = TEXT("close");
    else if (passing->direct && passing->keep_alive)
        options[count++] = TEXT("keep-alive");
    put_options(writer, options, count);
}

static void put_length(struct writer *writer, uint64_t size)
{
    put(writer, TEXT("Content-Length: "));
    put_number(writer, size);
    put(writer, TEXT("\r\n"));
}

/* HTTP/2 says by the end of the stream that there is no body. Where the method lets one expect one,
 * HTTP/1.1 says so by its length (RFC 9110, 8.6), and some servers ask for it (411). */
static bool lacks_length(const struct message *message)
{
    return message->carrier &&
           (text_equal(message->method, TEXT("POST")) || text_equal(message->method, TEXT("PUT")) ||
            text_equal(message->method, TEXT("PATCH")));
}

static void encode_request(struct writer *writer, struct encoder *encoder, struct passing *passing,
                           const struct adjustment *adjustment)
{
    const struct message *message = passing->message;

    encoder->chunked = message->has_body && message->body_size == UINT64_MAX;
    encoder->no_body = !message->has_body;
    /* Of CONNECT nothing is said: what follows is for somebody else. */
    passing->close = passing->direct && !message->facts.keep_alive && !message->facts.connect;
    passing->upgrade = message->facts.upgrade;
    passing->trailers = encoder->chunked;
    put(writer, message->method);
    put(writer, TEXT(" "));
    put_target(writer, message, adjustment);
    put(writer, TEXT(" HTTP/1.1\r\n"));
    put_field(writer, TEXT("Host"), passing_host(message, adjustment));
    put_fields(writer, passing);
    put_rewritten(writer, adjustment);
    put_trace(writer, passing);
    put_connection_to_upstream(writer, passing);
    if (message->expects_continue)
        put(writer, TEXT("Expect: 100-continue\r\n"));
    if (encoder->chunked)
        put(writer, TEXT("Transfer-Encoding: chunked\r\n"));
    else if (message->has_body || passing->has_length || lacks_length(message))
        put_length(writer, message->body_size);
}

/* ---- responses ---- */

static void put_status_line(struct writer *writer, const struct message *message)
{
    put(writer, TEXT("HTTP/1.1 "));
    put_number(writer, message->status);
    put(writer, TEXT(" "));
    put(writer, message->reason);
    put(writer, TEXT("\r\n"));
}

static void put_framing(struct writer *writer, const struct encoder *encoder,
                        const struct message *message)
{
    if (encoder->chunked)
        put(writer, TEXT("Transfer-Encoding: chunked\r\n"));
    else if (message->body_size != UINT64_MAX && message->status != STATUS_NO_CONTENT)
        put_length(writer, message->body_size);
}

static void put_connection_to_downstream(struct writer *writer, const struct passing *passing,
                                         const struct facts *facts)
{
    struct text options[2];
    unsigned count = 0;

    if (passing->upgrade)
        options[count++] = TEXT("Upgrade");
    if (passing->close)
        options[count++] = TEXT("close");
    else if ((passing->direct && passing->keep_alive) || (facts->http10 && !passing->upgrade))
        options[count++] = TEXT("keep-alive");
    put_options(writer, options, count);
}

static void encode_response(struct writer *writer, struct encoder *encoder, struct passing *passing,
                            const struct adjustment *adjustment)
{
    const struct message *message = passing->message;
    const struct facts *facts = &adjustment->facts;
    bool unsized = message->has_body && message->body_size == UINT64_MAX;
    bool final = message->status >= 200;

    encoder->chunked = unsized && !facts->http10 && !(passing->direct && message->until_close);
    encoder->no_body = !message->has_body;
    encoder->close =
        final && (adjustment->close || !facts->keep_alive || (unsized && !encoder->chunked));
    passing->close = encoder->close;
    passing->upgrade = message->upgraded || message->status == STATUS_UPGRADE_REQUIRED;
    passing->trailers = encoder->chunked;
    put_status_line(writer, message);
    put_fields(writer, passing);
    if (facts->connect && message->upgraded) { /* nothing about either connection any more */
        encoder->close = false;
        return;
    }
    if (final)
        put_framing(writer, encoder, message);
    if (final || message->upgraded)
        put_connection_to_downstream(writer, passing, facts);
}

size_t http1_encode(struct encoder *encoder, const struct message *message,
                    const struct adjustment *adjustment, uint8_t *to, size_t room)
{
    struct writer writer = writer_to(to, room);
    struct passing passing;

    passing_begin(&passing, message, adjustment);
    if (message->kind == MESSAGE_REQUEST) {
        encode_request(&writer, encoder, &passing, adjustment);
    } else {
        encode_response(&writer, encoder, &passing, adjustment);
    }
    put(&writer, TEXT("\r\n"));
    return written(&writer, to);
}

/* ---- bodies ---- */

size_t http1_before_data(const struct encoder *encoder, uint64_t size, uint8_t *to)
{
    char digits[16];
    size_t count = 0, length;

    if (!encoder->chunked)
        return 0;
    do
        digits[count++] = "0123456789abcdef"[size & 15];
    while (size >>= 4);
    length = count;
    while (count > 0)
        *to++ = (uint8_t)digits[--count];
    memcpy(to, "\r\n", 2);
    return length + 2;
}

size_t http1_after_data(const struct encoder *encoder, uint8_t *to)
{
    if (!encoder->chunked)
        return 0;
    memcpy(to, "\r\n", 2);
    return 2;
}

size_t http1_end(const struct encoder *encoder, const struct message *message, uint8_t *to,
                 size_t room)
{
    struct writer writer = writer_to(to, room);

    if (!encoder->chunked)
        return 0;
    put(&writer, TEXT("0\r\n"));
    for (uint32_t i = 0; i < message->field_count; i++)
        if (passing_takes_trailer(message->fields[i].name))
            put_field(&writer, message->fields[i].name, message->fields[i].value);
    put(&writer, TEXT("\r\n"));
    return written(&writer, to);
}
