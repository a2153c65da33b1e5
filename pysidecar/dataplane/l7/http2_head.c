#include "l7/http2_head.h"

#include "l7/grpc.h"
#include "l7/http1_passing.h"
#include "l7/http2_library.h"

/* Of the message that was decoded last. */
static _Thread_local struct field fields[MAX_FIELDS];

/* ---- blocks ---- */

bool http2_block_begin(struct blocks *blocks, struct buffer *buffer)
{
    static const struct http2_block empty = {0};

    return buffer_add(blocks, buffer, &empty, sizeof empty);
}

bool http2_block_add(struct blocks *blocks, struct buffer *buffer, struct text name,
                     struct text value)
{
    uint32_t sizes[2] = {name.size, value.size};
    size_t size = sizeof sizes + name.size + value.size;
    uint8_t *to = buffer_room(blocks, buffer, size);
    struct http2_block block;

    if (!to)
        return false;
    memcpy(to, sizes, sizeof sizes);
    memcpy(to + sizeof sizes, name.at, name.size);
    if (value.size > 0)
        memcpy(to + sizeof sizes + name.size, value.at, value.size);
    buffer->end += (uint32_t)size;
    memcpy(&block, buffer->data + buffer->start, sizeof block);
    block.count++;
    memcpy(buffer->data + buffer->start, &block, sizeof block);
    return true;
}

void http2_block_end(struct buffer *buffer, uint16_t flags)
{
    struct http2_block block;

    memcpy(&block, buffer->data + buffer->start, sizeof block);
    block.bytes = buffer_held(buffer);
    block.flags = flags;
    memcpy(buffer->data + buffer->start, &block, sizeof block);
}

struct http2_reader http2_read_block(const uint8_t *data, struct http2_block *block)
{
    memcpy(block, data, sizeof *block);
    return (struct http2_reader){data + sizeof *block, data + block->bytes};
}

bool http2_next_field(struct http2_reader *reader, struct field *field)
{
    const uint8_t *at = reader->at;
    uint32_t sizes[2];

    if (reader->end - at < (ptrdiff_t)sizeof sizes)
        return false;
    memcpy(sizes, at, sizeof sizes);
    at += sizeof sizes;
    if ((uint64_t)sizes[0] + sizes[1] > (uint64_t)(reader->end - at))
        return false;
    field->name = (struct text){(const char *)at, sizes[0]};
    field->value = (struct text){(const char *)at + sizes[0], sizes[1]};
    reader->at = at + sizes[0] + sizes[1];
    return true;
}

/* ---- reading ---- */

/* What the fields of a head say together. */
struct seen {
    bool has_length, expects_continue, expects_other, has_host;
    uint32_t cookies;
    uint64_t length;
    struct text host, timeout;
};

static bool read_pseudo(const struct field *field, struct message *message)
{
    struct text name = {field->name.at + 1, field->name.size - 1};

    if (text_equal(name, TEXT("method")))
        message->method = field->value;
    else if (text_equal(name, TEXT("path")))
        message->path = field->value;
    else if (text_equal(name, TEXT("authority")))
        message->authority = field->value;
    else if (text_equal(name, TEXT("scheme")))
        message->scheme = field->value;
    else if (!text_equal(name, TEXT("status")) || field->value.size != 3)
        return http1_refuse(message, 400, "a pseudo-header field that is none");
    else
        for (int i = 0; i < 3; i++)
            message->status = message->status * 10 + (uint32_t)(field->value.at[i] - '0');
    return true;
}

static void note_grpc_status(struct message *message, struct text value)
{
    message->has_grpc_status = true;
    message->grpc_status = grpc_status_of(value);
}

/* Which variant of the service Dubbo's clients ask for. */
static void read_triple(const struct field *field, struct message *message)
{
    message->triple = true;
    if (text_equal(field->name, TEXT("tri-service-version")))
        message->version = field->value;
    else if (text_equal(field->name, TEXT("tri-service-group")))
        message->group = field->value;
}

static bool read_known(struct seen *seen, const struct field *field, struct message *message)
{
    switch (http1_header(field->name)) {
    case HEADER_CONTENT_LENGTH:
        seen->has_length = true;
        return http1_number(field->value, &seen->length) ||
               http1_refuse(message, 400, "not a Content-Length");
    case HEADER_EXPECT:
        seen->expects_continue = text_equal_folded(field->value, TEXT("100-continue"));
        seen->expects_other |= !seen->expects_continue;
        return true;
    case HEADER_HOST:
        if (seen->has_host && message->kind == MESSAGE_REQUEST)
            return http1_refuse(message, 400, "more than one Host");
        seen->has_host = true;
        seen->host = field->value;
        return true;
    case HEADER_DISGUISED:
        return http1_refuse(message, 400, "a field's name has an underscore for a hyphen");
    default:
        break;
    }
    if (text_equal(field->name, TEXT("cookie")))
        message->splits_cookie = seen->cookies++ > 0;
    else if (text_equal(field->name, TEXT("content-type")))
        message->facts.grpc |= grpc_is_type(field->value);
    else if (text_equal(field->name, TEXT("grpc-timeout")))
        seen->timeout = field->value;
    else if (text_equal(field->name, TEXT("grpc-status")))
        note_grpc_status(message, field->value);
    else if (field->name.size > 4 && memcmp(field->name.at, "tri-", 4) == 0)
        read_triple(field, message);
    return true;
}

/* Fields that count less than all are valid in HTTP/1.1, too. */
static bool read_fields(struct http2_reader *reader, const struct limits *limits, struct seen *seen,
                        struct message *message)
{
    uint32_t most = limits->fields < MAX_FIELDS ? limits->fields : MAX_FIELDS;
    struct field field;

    message->fields = fields;
    while (http2_next_field(reader, &field)) {
        if (field.name.size > 0 && field.name.at[0] == ':') {
            if (!read_pseudo(&field, message))
                return false;
            continue;
        }
        if (message->field_count == most)
            return http1_refuse(message, 431, "too many fields");
        if (!http1_is_token(field.name) || !http1_is_value(field.value))
            return http1_refuse(message, 400, "not a field of HTTP");
        if (!read_known(seen, &field, message))
            return false;
        fields[message->field_count++] = field;
    }
    return true;
}

static bool read_target(const struct seen *seen, struct message *message)
{
    const char *end = message->path.at + message->path.size;

    if (message->authority.size == 0)
        message->authority = seen->host;
    else if (seen->has_host && !text_equal_folded(seen->host, message->authority))
        return http1_refuse(message, 400, "Host is not :authority");
    if (!http1_authority(message->authority, &message->service))
        return http1_refuse(message, 400, "not an :authority");
    if (message->facts.connect) {
        message->path = TEXT("*");
        return true;
    }
    if (message->path.size == 0 || http1_target_end(message->path.at, end) != end)
        return http1_refuse(message, 400, "not a :path");
    return message->path.at[0] == '/' ||
           (text_equal(message->path, TEXT("*")) && text_equal(message->method, TEXT("OPTIONS"))) ||
           http1_refuse(message, 400, "not a :path");
}

static void conclude_call(const struct seen *seen, struct message *message)
{
    struct text method;

    message->timeout_ms = grpc_timeout_ms(seen->timeout);
    if (!grpc_split_path(message->path, &message->rpc, &method))
        message->rpc = (struct text){NULL, 0};
}

static bool conclude_request(const struct seen *seen, bool ends, struct message *message)
{
    struct facts *facts = &message->facts;

    facts->head = text_equal(message->method, TEXT("HEAD"));
    facts->connect = text_equal(message->method, TEXT("CONNECT"));
    facts->keep_alive = true;
    if (!http1_is_token(message->method))
        return http1_refuse(message, 400, "not a method");
    if (!read_target(seen, message))
        return false;
    if (seen->expects_other)
        return http1_refuse(message, 417, "an Expect other than 100-continue");
    message->has_body = !ends;
    message->body_size = ends ? 0 : seen->has_length ? seen->length : UINT64_MAX;
    message->idempotent = http1_is_idempotent(message->method);
    message->expects_continue = seen->expects_continue && !ends;
    message->protocol = facts->grpc ? DP_GRPC : DP_HTTP2;
    if (facts->grpc)
        conclude_call(seen, message);
    return true;
}

static bool conclude_response(const struct decoder *decoder, const struct seen *seen, bool ends,
                              struct message *message)
{
    bool sizes_nothing = decoder->facts.head || message->status == STATUS_NOT_MODIFIED;

    if (message->status < 100 || message->status >= 600 ||
        message->status == STATUS_SWITCHING_PROTOCOLS)
        return http1_refuse(message, 400, "not a :status");
    message->reason = http1_phrase(message->status); /* which HTTP/2 has none of */
    message->succeeded = message->status < 400;
    if (message->status < 200) {
        message->kind = MESSAGE_INTERIM;
        return !ends || http1_refuse(message, 400, "1xx that ends the answer");
    }
    message->has_body = !ends;
    message->body_size = seen->has_length ? seen->length : UINT64_MAX;
    if (ends && !sizes_nothing)
        message->body_size = 0;
    return true;
}

static enum codec_event decode(struct decoder *decoder, const uint8_t *data, size_t size,
                               size_t *consumed, struct message *message)
{
    struct seen seen = {.has_length = false};
    struct http2_block block;
    struct http2_reader reader;
    bool ends;

    *consumed = 0;
    *message = (struct message){.kind = decoder->response ? MESSAGE_RESPONSE : MESSAGE_REQUEST};
    if (size < sizeof block)
        return CODEC_MORE;
    reader = http2_read_block(data, &block);
    if (block.bytes > size || block.bytes < sizeof block)
        return CODEC_MORE;
    *consumed = block.bytes;
    ends = block.flags & HTTP2_BLOCK_ENDS;
    if (!read_fields(&reader, decoder->limits, &seen, message))
        return CODEC_ERROR;
    if (!(decoder->response ? conclude_response(decoder, &seen, ends, message)
                            : conclude_request(&seen, ends, message)))
        return CODEC_ERROR;
    return CODEC_HEAD;
}

static enum codec_event finish(struct decoder *decoder, struct message *message)
{
    (void)decoder, (void)message;
    return CODEC_MORE;
}

void http2_read_trailers(const uint8_t *data, struct message *message)
{
    struct http2_block block;
    struct http2_reader reader = http2_read_block(data, &block);
    struct field field;

    message->fields = fields;
    message->field_count = 0;
    while (message->field_count < MAX_FIELDS && http2_next_field(&reader, &field)) {
        if (text_equal(field.name, TEXT("grpc-status")))
            note_grpc_status(message, field.value);
        if (http1_is_token(field.name) && http1_is_value(field.value))
            fields[message->field_count++] = field;
    }
}

/* ---- writing ---- */

struct block_writer {
    struct writer out;
    struct http2_block block;
};

static struct block_writer write_to(uint8_t *to, size_t room)
{
    struct block_writer writer = {.out = writer_to(to, room)};

    put(&writer.out, (struct text){(const char *)&writer.block, sizeof writer.block});
    return writer;
}

/* 0: there was too little room. */
static size_t write_block(struct block_writer *writer, uint8_t *to, uint16_t flags)
{
    size_t size = written(&writer->out, to);

    if (size == 0)
        return 0;
    writer->block.bytes = (uint32_t)size;
    writer->block.flags = flags;
    memcpy(to, &writer->block, sizeof writer->block);
    return size;
}

/* Names are in lower case. */
static void put_name(struct block_writer *writer, struct text name)
{
    char *at = writer->out.at;

    put(&writer->out, name);
    if (writer->out.full)
        return;
    for (uint32_t i = 0; i < name.size; i++)
        at[i] = lower_case(at[i]);
}

static void put_sizes(struct block_writer *writer, uint32_t name, uint32_t value)
{
    uint32_t sizes[2] = {name, value};

    put(&writer->out, (struct text){(const char *)sizes, sizeof sizes});
    writer->block.count++;
}

static void put_pair(struct block_writer *writer, struct text name, struct text value)
{
    put_sizes(writer, name.size, value.size);
    put_name(writer, name);
    put(&writer->out, value);
}

static void put_decimal(struct block_writer *writer, struct text name, uint64_t number)
{
    char digits[20];
    struct writer to = writer_to((uint8_t *)digits, sizeof digits);

    put_number(&to, number);
    put_pair(writer, name, text_between(digits, to.at));
}

static void put_own(struct block_writer *writer, struct text name, struct text value)
{
    if (http1_is_token(name) && http1_is_value(value) && http1_header(name) == HEADER_OTHER)
        put_pair(writer, name, value);
}

static void put_rewritten(struct block_writer *writer, const struct adjustment *adjustment)
{
    const struct rewrite *rewrite = adjustment->rewrite;

    if (!rewrite)
        return;
    for (uint32_t i = 0; i < rewrite->set_count; i++)
        put_own(writer, rewrite->set[i].name, rewrite->set[i].value);
    if (rewrite->original_destination.size > 0 && adjustment->original_destination.size > 0)
        put_own(writer, rewrite->original_destination, adjustment->original_destination);
}

static void put_path(struct block_writer *writer, const struct message *message,
                     const struct rewrite *rewrite)
{
    static const struct text name = TEXT(":path");
    char *sizes = writer->out.at, *from;
    uint32_t size;

    if (!rewrite || !passing_rewrites_path(rewrite, message->path)) {
        put_pair(writer, name, message->path);
        return;
    }
    put_sizes(writer, name.size, 0);
    put(&writer->out, name);
    from = writer->out.at;
    passing_put_path(&writer->out, message->path, rewrite);
    if (writer->out.full)
        return;
    size = (uint32_t)(writer->out.at - from);
    memcpy(sizes + sizeof size, &size, sizeof size);
}

static void put_passed(struct block_writer *writer, struct passing *passing)
{
    const struct message *message = passing->message;

    for (uint32_t i = 0; i < message->field_count; i++)
        if (passing_takes(passing, &message->fields[i]))
            put_pair(writer, message->fields[i].name, message->fields[i].value);
}

static void put_request(struct block_writer *writer, struct passing *passing,
                        const struct adjustment *adjustment)
{
    const struct message *message = passing->message;
    const struct field *field;
    uint32_t at = 0;

    put_pair(writer, TEXT(":method"), message->method);
    put_pair(writer, TEXT(":scheme"), message->scheme.size ? message->scheme : TEXT("http"));
    put_pair(writer, TEXT(":authority"), passing_host(message, adjustment));
    put_path(writer, message, adjustment->rewrite);
    put_passed(writer, passing);
    put_rewritten(writer, adjustment);
    while ((field = passing_next_of_trace(passing, &at)))
        put_pair(writer, field->name, field->value);
    if (passing->takes_trailers)
        put_pair(writer, TEXT("te"), TEXT("trailers"));
    if (message->expects_continue)
        put_pair(writer, TEXT("expect"), TEXT("100-continue"));
    if (message->body_size != UINT64_MAX && (message->has_body || passing->has_length))
        put_decimal(writer, TEXT("content-length"), message->body_size);
}

static void put_response(struct block_writer *writer, struct passing *passing)
{
    const struct message *message = passing->message;

    put_decimal(writer, TEXT(":status"), message->status);
    put_passed(writer, passing);
    if (message->status >= 200 && message->body_size != UINT64_MAX &&
        message->status != STATUS_NO_CONTENT && (message->body_size > 0 || passing->has_length))
        put_decimal(writer, TEXT("content-length"), message->body_size);
}

static size_t encode(struct encoder *encoder, const struct message *message,
                     const struct adjustment *adjustment, uint8_t *to, size_t room)
{
    struct block_writer writer = write_to(to, room);
    struct passing passing;
    bool ends = !message->has_body && message->kind != MESSAGE_INTERIM;

    *encoder = (struct encoder){.no_body = ends};
    passing_begin(&passing, message, adjustment);
    passing.direct = false;
    passing.trailers = true;
    if (message->kind == MESSAGE_REQUEST)
        put_request(&writer, &passing, adjustment);
    else
        put_response(&writer, &passing);
    return write_block(&writer, to, ends ? HTTP2_BLOCK_ENDS : 0);
}

size_t http2_encode_trailers(const struct message *message, uint8_t *to, size_t room)
{
    struct block_writer writer = write_to(to, room);

    for (uint32_t i = 0; i < message->field_count; i++)
        if (passing_takes_trailer(message->fields[i].name))
            put_pair(&writer, message->fields[i].name, message->fields[i].value);
    return write_block(&writer, to, HTTP2_BLOCK_ENDS);
}

/* ---- answers of our own ---- */

/* Percent-encoded would be what is not printable ASCII, and "%": our reasons have neither. */
static void put_grpc_status(struct block_writer *writer, const struct rejection *rejection,
                            struct text reason)
{
    uint8_t status = grpc_status_for(rejection);

    put_decimal(writer, TEXT("grpc-status"), status);
    put_pair(writer, TEXT("grpc-message"), reason);
    if (rejection->status)
        *rejection->status = status;
}

static void put_grpc_refusal(struct block_writer *writer, const struct rejection *rejection,
                             struct text reason)
{
    put_pair(writer, TEXT(":status"), TEXT("200"));
    put_pair(writer, TEXT("content-type"), TEXT("application/grpc"));
    put_grpc_status(writer, rejection, reason);
}

size_t http2_encode_grpc_end(const struct rejection *rejection, uint8_t *to, size_t room)
{
    struct block_writer writer = write_to(to, room);

    put_grpc_status(&writer, rejection, http1_reject_word(rejection->flag));
    return write_block(&writer, to, HTTP2_BLOCK_ENDS);
}

static void put_refusal(struct block_writer *writer, const struct rejection *rejection,
                        struct text reason)
{
    uint16_t status = http1_reject_status(rejection);

    put_decimal(writer, TEXT(":status"), status);
    put_pair(writer, TEXT("content-type"), TEXT("text/plain"));
    put_decimal(writer, TEXT("content-length"), (uint64_t)reason.size + 1);
    if (rejection->status)
        *rejection->status = status;
}

/* The block, and behind it a body, if it does not end with it. */
static size_t reject(const struct facts *facts, uint64_t id, const struct rejection *rejection,
                     uint8_t *to, size_t room)
{
    struct block_writer writer = write_to(to, room);
    struct text word = http1_reject_word(rejection->flag), reason = rejection->reason;
    size_t size;

    (void)id;
    if (reason.size == 0)
        reason = facts->grpc ? word : http1_phrase(http1_reject_status(rejection));
    if (facts->grpc)
        put_grpc_refusal(&writer, rejection, reason);
    else
        put_refusal(&writer, rejection, reason);
    if (word.size > 0)
        put_pair(&writer, TEXT("x-sidecar-reason"), word);
    if (facts->grpc || facts->head)
        return write_block(&writer, to, HTTP2_BLOCK_ENDS);
    size = write_block(&writer, to, 0);
    put(&writer.out, reason);
    put(&writer.out, TEXT("\n"));
    return size > 0 ? written(&writer.out, to) : 0;
}

/* ---- detection ---- */

static enum detection detect(const uint8_t *data, size_t size)
{
    static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    size_t length = sizeof preface - 1;

    if (!HAS_LIBNGHTTP2 || memcmp(data, preface, size < length ? size : length) != 0)
        return DETECT_NO;
    return size < length ? DETECT_MORE : DETECT_YES;
}

const struct codec codec_http2 = {
    .name = "http2",
    .protocol = DP_HTTP2,
    .multiplexes = true,
    .is_http2 = true,
    .detect = detect,
    .decode = decode,
    .finish = finish,
    .encode = encode,
    .reject = reject,
};
