/* Dubbo's own protocol, as its ExchangeCodec and DubboCodec lay it out:
 *
 *     magic:2 flags status id:8 body:4
 *
 * and the body. That of a request begins with five strings (Dubbo's version, path, version of the
 * service, method, descriptor of the parameters), then come the arguments and the attachments, a
 * map. All of it is in the serialization that the flags name. Only Hessian 2 is looked into: a
 * request in another one has no service, method or group, and is routed by rules that ask for none.
 * So has one as far as its body cannot be read: the frame is sound, and it is for the service to
 * say what it thinks of the body.
 *
 * Group and timeout are attachments, behind the arguments, over which we skip. */
#include "l7/codec.h"

#include "l7/bytes.h"
#include "l7/hessian.h"
#include "l7/trace_context.h"

enum {
    MAGIC = 0xdabb,
    HEAD_BYTES = 16,
    EVENT_BYTES = 64, /* of the body of an event; Dubbo takes 15 */

    FLAG_REQUEST = 0x80,
    FLAG_TWO_WAY = 0x40,
    FLAG_EVENT = 0x20,
    SERIALIZATION = 0x1f,
    HESSIAN2 = 2,

    STATUS_OK = 20,
    STATUS_SERVER_TIMEOUT = 31,
    STATUS_CHANNEL_INACTIVE = 35,
    STATUS_BAD_REQUEST = 40,
    STATUS_BAD_RESPONSE = 50,
    STATUS_SERVICE_NOT_FOUND = 60,
    STATUS_SERVER_ERROR = 80,
    STATUS_EXHAUSTED = 100,

    /* The ints that the body of an answer may begin with. */
    INT_EXCEPTION = 0x90,
    INT_EXCEPTION_WITH_ATTACHMENTS = 0x93,
};

/* Of the message told last in this thread; and where each attachment begins, and ends. */
static _Thread_local struct field fields[MAX_FIELDS];
static _Thread_local struct {
    const uint8_t *begin, *end;
} places[MAX_FIELDS];

static uint8_t flags_of(const struct message *message)
{
    return (uint8_t)message->frame.at[2];
}

static struct text body_of(const struct message *message)
{
    return (struct text){message->frame.at + HEAD_BYTES, message->frame.size - HEAD_BYTES};
}

/* ---- the body of a request ---- */

/* One type of a descriptor, as those of Java's methods. Returns its size; 0: it is none. */
static uint32_t type_size(struct text descriptor)
{
    uint32_t at = 0;

    while (at < descriptor.size && descriptor.at[at] == '[')
        at++;
    if (at == descriptor.size)
        return 0;
    if (descriptor.at[at] == 'L') {
        const char *end = memchr(descriptor.at + at, ';', descriptor.size - at);

        return end ? (uint32_t)(end - descriptor.at) + 1 : 0;
    }
    return memchr("ZBCDFIJSV", descriptor.at[at], 9) ? at + 1 : 0;
}

static bool skip_arguments(struct hessian *body, struct text descriptor)
{
    while (descriptor.size > 0) {
        uint32_t size = type_size(descriptor);

        if (size == 0 || !hessian_skip(body))
            return false;
        descriptor.at += size;
        descriptor.size -= size;
    }
    return true;
}

static uint32_t milliseconds(int64_t number)
{
    return number < 0 ? 0 : number > INT32_MAX ? INT32_MAX : (uint32_t)number;
}

static uint32_t decimal_milliseconds(struct text text)
{
    int64_t number = 0;

    for (uint32_t i = 0; i < text.size; i++) {
        if (text.at[i] < '0' || text.at[i] > '9' || i == 10)
            return 0;
        number = number * 10 + (text.at[i] - '0');
    }
    return milliseconds(number);
}

static bool is_string(const struct hessian *hessian)
{
    return hessian->at < hessian->end &&
           (*hessian->at < 0x20 || (*hessian->at >= 0x30 && *hessian->at < 0x34) ||
            *hessian->at == 'S');
}

/* An attachment that is no string, such as a timeout that is a number. */
static bool skip_other(struct hessian *body, struct text name, struct message *message)
{
    const uint8_t *at = body->at;
    int64_t number;

    if (text_equal(name, TEXT("timeout")) && hessian_number(body, &number)) {
        message->timeout_ms = milliseconds(number);
        return true;
    }
    body->at = at;
    return hessian_skip(body);
}

/* `begin`: of the attachment, which ends where `body` goes on. */
static void note_attachment(struct message *message, const struct field *field,
                            const uint8_t *begin, const struct hessian *body)
{
    if (text_equal(field->name, TEXT("group")))
        message->group = field->value;
    else if (text_equal(field->name, TEXT("timeout")))
        message->timeout_ms = decimal_milliseconds(field->value);
    if (message->field_count == MAX_FIELDS)
        return;
    places[message->field_count].begin = begin;
    places[message->field_count].end = body->at;
    fields[message->field_count++] = *field;
}

static bool read_attachments(struct hessian *body, struct message *message)
{
    message->fields = fields;
    if (!hessian_enter_map(body))
        return false;
    while (!hessian_leave(body)) {
        struct field field = {.name = {NULL, 0}};
        const uint8_t *begin = body->at;

        if (is_string(body) ? !hessian_string(body, &field.name) : !hessian_skip(body))
            return false;
        if (field.name.size == 0 || !is_string(body)) {
            if (!skip_other(body, field.name, message))
                return false;
            continue;
        }
        if (!hessian_string(body, &field.value))
            return false;
        note_attachment(message, &field, begin, body);
    }
    if (body->at == body->end)
        message->attachments_end = (const char *)body->end - 1;
    return true;
}

/* Whatever can be told of it. */
static void read_request(struct message *message)
{
    struct text body = body_of(message), dubbo_version, descriptor;
    struct hessian hessian;

    hessian_begin(&hessian, (const uint8_t *)body.at, body.size);
    if (!hessian_string(&hessian, &dubbo_version) || !hessian_string(&hessian, &message->service) ||
        !hessian_string(&hessian, &message->version) ||
        !hessian_string(&hessian, &message->method)) {
        message->service = message->version = message->method = (struct text){NULL, 0};
        return;
    }
    if (hessian_string(&hessian, &descriptor) && skip_arguments(&hessian, descriptor) &&
        read_attachments(&hessian, message))
        return;
    message->group = (struct text){NULL, 0};
    message->timeout_ms = 0;
    message->field_count = 0;
}

/* ---- reading ---- */

static enum codec_event fail(struct message *message, const char *problem)
{
    message->problem = problem;
    return CODEC_ERROR;
}

static enum message_kind kind_of(uint8_t flags)
{
    if (flags & FLAG_EVENT)
        return flags & FLAG_REQUEST ? MESSAGE_HEARTBEAT : MESSAGE_HEARTBEAT_ANSWER;
    if (!(flags & FLAG_REQUEST))
        return MESSAGE_RESPONSE;
    return flags & FLAG_TWO_WAY ? MESSAGE_REQUEST : MESSAGE_ONEWAY;
}

static void tell_response(struct message *message)
{
    struct text body = body_of(message);
    uint8_t first = body.size > 0 ? (uint8_t)*body.at : 0;

    message->status = (uint8_t)message->frame.at[3];
    message->succeeded = message->status == STATUS_OK;
    message->refused = message->status == STATUS_EXHAUSTED;
    message->service_failed = message->succeeded &&
                              (flags_of(message) & SERIALIZATION) == HESSIAN2 &&
                              (first == INT_EXCEPTION || first == INT_EXCEPTION_WITH_ATTACHMENTS);
}

/* Of Hessian 2, which all peers of today use for it. */
static bool says_read_only(const struct message *message)
{
    return text_equal(body_of(message), TEXT("\001R"));
}

/* All of the frame is there. */
static enum codec_event tell_frame(const struct decoder *decoder, struct message *message)
{
    uint8_t flags = flags_of(message);

    message->kind = kind_of(flags);
    message->id = read_u64(message->frame.at + 4);
    if (message->kind == MESSAGE_RESPONSE && !decoder->response)
        return fail(message, "an answer where requests are expected");
    if (flags & FLAG_EVENT && body_of(message).size > EVENT_BYTES)
        return fail(message, "the event is too long");
    if (!(flags & FLAG_REQUEST)) {
        tell_response(message);
        return CODEC_HEAD;
    }
    message->facts.serialization = flags & SERIALIZATION;
    message->facts.heartbeat = message->kind == MESSAGE_HEARTBEAT;
    if (message->kind == MESSAGE_HEARTBEAT)
        message->last = says_read_only(message);
    else if (message->facts.serialization == HESSIAN2)
        read_request(message);
    return CODEC_HEAD;
}

static bool is_magic(const uint8_t *data, size_t size)
{
    return (size < 1 || data[0] == MAGIC >> 8) && (size < 2 || data[1] == (MAGIC & 0xff));
}

static enum codec_event dubbo_decode(struct decoder *decoder, const uint8_t *data, size_t size,
                                     size_t *consumed, struct message *message)
{
    uint64_t whole;
    enum codec_event event;

    *consumed = 0;
    *message = (struct message){.wanted = size > 0 ? HEAD_BYTES : 0};
    if (!is_magic(data, size))
        return fail(message, "not Dubbo");
    decoder->state |= size > 0;
    if (size < HEAD_BYTES)
        return CODEC_MORE;
    whole = HEAD_BYTES + (uint64_t)read_u32(data + 12);
    if (whole > decoder->limits->frame_bytes)
        return fail(message, "the frame is too long");
    message->wanted = whole;
    if (size < whole)
        return CODEC_MORE;
    message->frame = (struct text){(const char *)data, (uint32_t)whole};
    event = tell_frame(decoder, message);
    if (event == CODEC_HEAD) {
        *consumed = whole;
        decoder->state = 0;
    }
    return event;
}

static enum codec_event dubbo_finish(struct decoder *decoder, struct message *message)
{
    *message = (struct message){0};
    return decoder->state == 0 ? CODEC_MORE : fail(message, "the connection ended in a frame");
}

static enum detection dubbo_detect(const uint8_t *data, size_t size)
{
    if (!is_magic(data, size) || (size > 2 && !(data[2] & FLAG_REQUEST)))
        return DETECT_NO;
    return size < 3 ? DETECT_MORE : DETECT_YES;
}

/* ---- writing ---- */

/* In Hessian 2: of less than 32 characters, or of less than 1,024. */
static void put_string(struct output *output, struct text text)
{
    if (text.size >= 32)
        put_u8(output, (uint8_t)(0x30 + (text.size >> 8)));
    put_u8(output, (uint8_t)text.size);
    put(output, text.at, text.size);
}

/* The frame with other attachments of a trace. Hessian 2 numbers classes, types, lists, maps and
 * objects, but no strings, so that nothing else changes when a pair of these comes or goes. */
static size_t put_traced(const struct message *message, const struct trace_fields *trace,
                         uint64_t id, uint8_t *to, size_t room)
{
    struct output output = output_to(to, room);
    const char *from = message->frame.at, *end = from + message->frame.size;

    for (uint32_t i = 0; i < message->field_count; i++) {
        if (!trace_fields_replace(trace, message->fields[i].name))
            continue;
        put(&output, from, (size_t)((const char *)places[i].begin - from));
        from = (const char *)places[i].end;
    }
    put(&output, from, (size_t)(message->attachments_end - from));
    for (uint32_t i = 0; i < trace->count; i++) {
        put_string(&output, trace->set[i].name);
        put_string(&output, trace->set[i].value);
    }
    put(&output, message->attachments_end, (size_t)(end - message->attachments_end));
    if (output.full)
        return 0;
    write_u64(to + 4, id);
    write_u32(to + 12, (uint32_t)output_size(&output) - HEAD_BYTES);
    return output_size(&output);
}

static size_t dubbo_encode(struct encoder *encoder, const struct message *message,
                           const struct adjustment *adjustment, uint8_t *to, size_t room)
{
    (void)encoder;
    if (adjustment->trace && message->attachments_end)
        return put_traced(message, adjustment->trace, adjustment->id, to, room);
    if (room < message->frame.size)
        return 0;
    memcpy(to, message->frame.at, message->frame.size);
    write_u64(to + 4, adjustment->id);
    return message->frame.size;
}

static void put_head(struct output *output, uint8_t flags, uint8_t status, uint64_t id,
                     uint32_t body_size)
{
    put_u16(output, MAGIC);
    put_u8(output, flags);
    put_u8(output, status);
    put_u64(output, id);
    put_u32(output, body_size);
}

/* By enum dp_flag. What Dubbo makes of them: docs/requests.md. 31 is a timeout to it, after which
 * the call may have had its effect; the others are failures of the way. */
static const struct {
    uint8_t status;
    struct text reason;
} failures[DP_FLAGS] = {
    [DP_FLAG_NO_ROUTE] = {STATUS_SERVICE_NOT_FOUND, TEXT("sidecar: no_route")},
    [DP_FLAG_NO_ENDPOINT] = {STATUS_SERVER_ERROR, TEXT("sidecar: no_endpoint")},
    [DP_FLAG_CONNECT_FAILED] = {STATUS_SERVER_ERROR, TEXT("sidecar: connect_failed")},
    [DP_FLAG_CONNECT_TIMEOUT] = {STATUS_SERVER_ERROR, TEXT("sidecar: connect_timeout")},
    [DP_FLAG_TIMEOUT] = {STATUS_SERVER_TIMEOUT, TEXT("sidecar: timeout")},
    [DP_FLAG_UPSTREAM_RESET] = {STATUS_CHANNEL_INACTIVE, TEXT("sidecar: upstream_reset")},
    [DP_FLAG_OVERLOAD] = {STATUS_EXHAUSTED, TEXT("sidecar: overload")},
    [DP_FLAG_MALFORMED_REQUEST] = {STATUS_BAD_REQUEST, TEXT("sidecar: malformed_request")},
    [DP_FLAG_MALFORMED_RESPONSE] = {STATUS_BAD_RESPONSE, TEXT("sidecar: malformed_response")},
    [DP_FLAG_REFUSED] = {STATUS_BAD_REQUEST, TEXT("sidecar: refused")},
    [DP_FLAG_LOOP] = {STATUS_SERVER_ERROR, TEXT("sidecar: loop")},
    [DP_FLAG_RATE_LIMITED] = {STATUS_EXHAUSTED, TEXT("sidecar: rate_limited")},
    [DP_FLAG_FAULT_ABORT] = {STATUS_SERVER_ERROR, TEXT("sidecar: fault_abort")},
    [DP_FLAG_DRAIN_LIMIT] = {STATUS_SERVER_ERROR, TEXT("sidecar: drain_limit")},
};

/* In Hessian 2, whatever the request was in: an answer says by itself what it is in, and Dubbo
 * reads each that it knows. */
static size_t dubbo_reject(const struct facts *facts, uint64_t id,
                           const struct rejection *rejection, uint8_t *to, size_t room)
{
    struct output output = output_to(to, room);
    uint8_t status =
        rejection->own_status ? rejection->own_status : failures[rejection->flag].status;
    struct text reason =
        rejection->reason.size ? rejection->reason : failures[rejection->flag].reason;

    (void)facts;
    if (status == 0)
        status = STATUS_SERVER_ERROR;
    if (rejection->status)
        *rejection->status = status;
    if (reason.size > INT8_MAX)
        reason.size = INT8_MAX;
    put_head(&output, HESSIAN2, status, id, 2 + reason.size);
    put_u8(&output, 0x30); /* a string of less than 256 characters */
    put_u8(&output, (uint8_t)reason.size);
    put(&output, reason.at, reason.size);
    return output_size(&output);
}

static size_t dubbo_heartbeat(const struct facts *facts, uint64_t id, uint8_t *to, size_t room)
{
    struct output output = output_to(to, room);

    (void)facts;
    put_head(&output, FLAG_REQUEST | FLAG_TWO_WAY | FLAG_EVENT | HESSIAN2, 0, id, 1);
    put_u8(&output, 'N');
    return output_size(&output);
}

/* Its body is null in its own serialization, whichever that is, and so is the answer's. An event
 * that wants no answer gets none: 0 bytes. */
static size_t dubbo_answer_heartbeat(const struct message *message, uint8_t *to, size_t room)
{
    struct output output = output_to(to, room);
    uint8_t flags = flags_of(message);
    struct text body = body_of(message);

    if (!(flags & FLAG_TWO_WAY))
        return 0;
    put_head(&output, FLAG_EVENT | (flags & SERIALIZATION), STATUS_OK, message->id, body.size);
    put(&output, body.at, body.size);
    return output_size(&output);
}

const struct codec codec_dubbo = {
    .name = "dubbo",
    .protocol = DP_DUBBO,
    .multiplexes = true,
    .detect = dubbo_detect,
    .decode = dubbo_decode,
    .finish = dubbo_finish,
    .encode = dubbo_encode,
    .reject = dubbo_reject,
    .heartbeat = dubbo_heartbeat,
    .answer_heartbeat = dubbo_answer_heartbeat,
};
