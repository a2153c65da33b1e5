/* Writes messages. What says where a message ends, and what is meant for one connection only, is
 * written anew and never passed on. */
#include "l7/http1.h"
#include "l7/http1_write.h"

/* How the fields of a message are passed on. */
struct passing {
    const struct message *message;
    const struct rewrite *rewrite;             /* NULL: none */
    struct text named[MAX_CONNECTION_OPTIONS]; /* by Connection: meant for us alone */
    uint32_t named_count;
    bool direct;     /* see struct adjustment */
    bool close;      /* its connection ends */
    bool keep_alive; /* Connection says so */
    bool upgrade;    /* Upgrade is passed on */
    bool trailers;   /* may follow */
    bool takes_trailers, has_length;
};

/* ---- which fields are passed on ---- */

static bool begins_folded(struct text text, struct text with)
{
    return text.size >= with.size && text_equal_folded((struct text){text.at, with.size}, with);
}

/* What Connection must not name: it is known how to take from a request that way what a proxy
 * before us has put there, or what the service relies on. Nor may it come late, as a trailer. */
static bool is_essential(struct text name)
{
    static const struct text names[] = {
        TEXT("accept"),   TEXT("authorization"), TEXT("cache-control"), TEXT("cookie"),
        TEXT("date"),     TEXT("etag"),          TEXT("expires"),       TEXT("forwarded"),
        TEXT("location"), TEXT("origin"),        TEXT("pragma"),        TEXT("range"),
        TEXT("referer"),  TEXT("set-cookie"),    TEXT("traceparent"),   TEXT("true-client-ip"),
        TEXT("vary"),     TEXT("via"),           TEXT("x-real-ip"),     TEXT("x-request-id"),
    };
    static const struct text beginnings[] = {
        TEXT("accept-"),     TEXT("content-"),  TEXT("if-"),       TEXT("sec-"),
        TEXT("x-auth"),      TEXT("x-b3-"),     TEXT("x-client-"), TEXT("x-forwarded-"),
        TEXT("x-original-"), TEXT("x-remote-"), TEXT("x-user"),
    };

    if (http1_header(name) != HEADER_OTHER)
        return true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (http1_is(name, names[i]))
            return true;
    for (size_t i = 0; i < sizeof beginnings / sizeof *beginnings; i++)
        if (begins_folded(name, beginnings[i]))
            return true;
    return false;
}

static void note_named(struct passing *passing, struct text list)
{
    struct text option;

    while (http1_next_element(&list, &option) && passing->named_count < MAX_CONNECTION_OPTIONS) {
        passing->keep_alive |= http1_is(option, TEXT("keep-alive"));
        if (!is_essential(option))
            passing->named[passing->named_count++] = option;
    }
}

static void note_connection(struct passing *passing)
{
    const struct message *message = passing->message;

    for (uint32_t i = 0; i < message->field_count; i++)
        if (message->fields[i].name.size == 10 &&
            http1_header(message->fields[i].name) == HEADER_CONNECTION)
            note_named(passing, message->fields[i].value);
}

static bool is_named(const struct passing *passing, struct text name)
{
    for (uint32_t i = 0; i < passing->named_count; i++)
        if (text_equal_folded(name, passing->named[i]))
            return true;
    return false;
}

/* Whether the rewriting removes it, or puts another in its place. */
static bool is_rewritten(const struct rewrite *rewrite, struct text name)
{
    if (rewrite->original_destination.size > 0 &&
        text_equal_folded(name, rewrite->original_destination))
        return true;
    for (uint32_t i = 0; i < rewrite->remove_count; i++)
        if (text_equal_folded(name, rewrite->remove[i]))
            return true;
    for (uint32_t i = 0; i < rewrite->set_count; i++)
        if (text_equal_folded(name, rewrite->set[i].name))
            return true;
    return false;
}

static bool passes(struct passing *passing, const struct field *field)
{
    switch (http1_header(field->name)) {
    case HEADER_OTHER:
        break;
    case HEADER_CONTENT_LENGTH:
        passing->has_length = true;
        return false;
    case HEADER_TE:
        passing->takes_trailers |= http1_lists(field->value, TEXT("trailers"));
        return false;
    case HEADER_TRAILER:
        return passing->trailers;
    case HEADER_UPGRADE:
        return passing->upgrade;
    case HEADER_KEEP_ALIVE:
        return passing->direct && !passing->close;
    case HEADER_PROXY_AUTHENTICATE:
    case HEADER_PROXY_AUTHENTICATION_INFO:
    case HEADER_PROXY_AUTHORIZATION:
        /* RFC 9110, 11.7: for the next proxy, which we are none of to a client that does not know
         * of us. */
        return passing->direct;
    case HEADER_HOST: /* of a request it is written beside the line */
        return passing->message->kind != MESSAGE_REQUEST;
    default:
        return false;
    }
    return !is_named(passing, field->name) &&
           (!passing->rewrite || !is_rewritten(passing->rewrite, field->name));
}

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

static void put_fields(struct writer *writer, struct passing *passing)
{
    const struct message *message = passing->message;

    note_connection(passing);
    for (uint32_t i = 0; i < message->field_count; i++)
        if (passes(passing, &message->fields[i]))
            put_field_of(writer, &message->fields[i]);
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

/* ---- requests ---- */

static bool rewrites_path(const struct rewrite *rewrite, struct text path)
{
    struct text with = rewrite->path_prefix;

    return with.at && path.at[0] == '/' && rewrite->path_prefix_size <= path.size &&
           http1_target_end(with.at, with.at + with.size) == with.at + with.size;
}

/* The path with its prefix replaced: with one "/" where both meet, and one at its beginning. */
static void put_rewritten_path(struct writer *writer, struct text path,
                               const struct rewrite *rewrite)
{
    struct text with = rewrite->path_prefix;
    const char *rest = path.at + rewrite->path_prefix_size, *end = path.at + path.size;
    bool slash = rewrite->path_prefix_size > 0 && rest[-1] == '/';

    if (!slash && rest < end && *rest == '/') {
        rest++;
        slash = true;
    }
    if (with.size > 0 && with.at[0] != '/')
        put(writer, TEXT("/"));
    if (with.size > 0 && with.at[with.size - 1] == '/') {
        with.size--;
        slash = true;
    }
    put(writer, with);
    if (slash || with.size == 0)
        put(writer, TEXT("/"));
    put(writer, text_between(rest, end));
}

/* The path, unless whom the client connected to may be a proxy, which is to have what it was sent.
 */
static void put_target(struct writer *writer, const struct message *message,
                       const struct adjustment *adjustment)
{
    const struct rewrite *rewrite = adjustment->rewrite;

    if (rewrite && rewrites_path(rewrite, message->path))
        put_rewritten_path(writer, message->path, rewrite);
    else if (adjustment->direct && message->target.size > 0 && (!rewrite || message->facts.connect))
        put(writer, message->target);
    else
        put(writer, message->path);
}

static struct text host_of(const struct message *message, const struct adjustment *adjustment)
{
    const struct rewrite *rewrite = adjustment->rewrite;

    if (rewrite && rewrite->host.size > 0 && http1_is_value(rewrite->host))
        return rewrite->host;
    /* HTTP/1.0 need not say it; HTTP/1.1 must. */
    return message->authority.size > 0 ? message->authority : adjustment->original_destination;
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
    put_field(writer, TEXT("Host"), host_of(message, adjustment));
    put_fields(writer, passing);
    put_rewritten(writer, adjustment);
    put_connection_to_upstream(writer, passing);
    if (message->expects_continue)
        put(writer, TEXT("Expect: 100-continue\r\n"));
    if (encoder->chunked)
        put(writer, TEXT("Transfer-Encoding: chunked\r\n"));
    else if (message->has_body || passing->has_length)
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

    passing.message = message;
    passing.named_count = 0;
    passing.takes_trailers = passing.has_length = passing.keep_alive = false;
    passing.direct = adjustment->direct;
    if (message->kind == MESSAGE_REQUEST) {
        passing.rewrite = adjustment->rewrite;
        encode_request(&writer, encoder, &passing, adjustment);
    } else {
        passing.rewrite = NULL;
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
        if (!is_essential(message->fields[i].name))
            put_field(&writer, message->fields[i].name, message->fields[i].value);
    put(&writer, TEXT("\r\n"));
    return written(&writer, to);
}
