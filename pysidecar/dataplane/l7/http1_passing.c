#include "l7/http1_passing.h"

#include "l7/trace_context.h"

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
        TEXT("accept"),     TEXT("authorization"),  TEXT("b3"),         TEXT("cache-control"),
        TEXT("cookie"),     TEXT("date"),           TEXT("etag"),       TEXT("expires"),
        TEXT("forwarded"),  TEXT("location"),       TEXT("origin"),     TEXT("pragma"),
        TEXT("range"),      TEXT("referer"),        TEXT("set-cookie"), TEXT("traceparent"),
        TEXT("tracestate"), TEXT("true-client-ip"), TEXT("vary"),       TEXT("via"),
        TEXT("x-real-ip"),  TEXT("x-request-id"),
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

bool passing_takes(struct passing *passing, const struct field *field)
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
        return !passing->request;
    default:
        return false;
    }
    return !is_named(passing, field->name) &&
           (!passing->rewrite || !is_rewritten(passing->rewrite, field->name)) &&
           !trace_fields_replace(passing->trace, field->name);
}

const struct field *passing_next_of_trace(const struct passing *passing, uint32_t *at)
{
    const struct trace_fields *trace = passing->trace;

    while (trace && *at < trace->count) {
        const struct field *field = &trace->set[(*at)++];

        if (!passing->rewrite || !is_rewritten(passing->rewrite, field->name))
            return field;
    }
    return NULL;
}

bool passing_takes_trailer(struct text name)
{
    return !is_essential(name);
}

void passing_begin(struct passing *passing, const struct message *message,
                   const struct adjustment *adjustment)
{
    passing->message = message;
    passing->request = message->kind == MESSAGE_REQUEST;
    passing->rewrite = passing->request ? adjustment->rewrite : NULL;
    passing->trace = passing->request ? adjustment->trace : NULL;
    passing->named_count = 0;
    passing->takes_trailers = passing->has_length = passing->keep_alive = false;
    passing->direct = adjustment->direct;
    passing->close = passing->upgrade = passing->trailers = false;
    note_connection(passing);
}

/* ---- what a request is for ---- */

bool passing_rewrites_path(const struct rewrite *rewrite, struct text path)
{
    struct text with = rewrite->path_prefix;

    return with.at && path.at[0] == '/' && rewrite->path_prefix_size <= path.size &&
           http1_target_end(with.at, with.at + with.size) == with.at + with.size;
}

void passing_put_path(struct writer *writer, struct text path, const struct rewrite *rewrite)
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

struct text passing_host(const struct message *message, const struct adjustment *adjustment)
{
    const struct rewrite *rewrite = adjustment->rewrite;

    if (rewrite && rewrite->host.size > 0 && http1_is_value(rewrite->host))
        return rewrite->host;
    /* HTTP/1.0 need not say it; HTTP/1.1 must. */
    return message->authority.size > 0 ? message->authority : adjustment->original_destination;
}
