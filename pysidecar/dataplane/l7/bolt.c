/* Bolt v1 and v2, as SOFABolt's RpcProtocol and RpcProtocolV2 lay them out:
 *
 *     request    proto [ver1] type cmdcode:2 ver2 id:4 codec [switch] timeout:4 class:2 header:2
 *                content:4
 *     response   the same, with status:2 for timeout:4
 *
 * then the class name, the header section and the content; what is in brackets is v2's. With ver1 2
 * and bit 0 of the switch, the CRC-32 of all of it follows.
 *
 * The header section is SOFARPC's: pairs of strings, each a length of 4 bytes and its bytes; a
 * length below 0 is null, and a pair with such a one is no header. Of two headers with a name, the
 * last one counts, as in Java's map.
 *
 * Lengths of class and header section are signed numbers in Java: what is beyond would be read
 * differently by each side, and is refused. */
#include "l7/codec.h"

#include "l7/bytes.h"
#include "l7/checksum.h"
#include "l7/trace_context.h"

enum {
    PROTOCOL_1 = 1,
    PROTOCOL_2 = 2,

    TYPE_RESPONSE = 0,
    TYPE_REQUEST = 1,
    TYPE_ONEWAY = 2,

    COMMAND_HEARTBEAT = 0,
    COMMAND_REQUEST = 1,
    COMMAND_RESPONSE = 2,

    SWITCH_CRC = 1,
    CRC_BYTES = 4,
    HESSIAN = 1, /* the codec */
    MAX_SECTION = INT16_MAX,

    STATUS_SUCCESS = 0,
    STATUS_EXCEPTION = 2, /* of the service itself, where that is bare SOFABolt */
    STATUS_BUSY = 4,
    STATUS_NO_PROCESSOR = 6,
    STATUS_TIMEOUT = 7,
    STATUS_CODEC = 9,
    STATUS_CLOSED = 0x10,
};

/* The fixed part of a frame. */
struct head {
    uint8_t protocol, revision; /* ver1: 0 in v1 */
    uint8_t type, command_version, codec, options;
    uint16_t command;
    uint32_t id;
    uint32_t timeout_or_status;
    uint32_t class_size, header_size, content_size;
};

/* Of the message told last in this thread. */
static _Thread_local struct field fields[MAX_FIELDS];

/* ---- the fixed part ---- */

static size_t head_size(uint8_t protocol, uint8_t type)
{
    return (type == TYPE_RESPONSE ? 20 : 22) + (protocol == PROTOCOL_2 ? 2 : 0);
}

/* What is wrong with the first bytes, so far; NULL: nothing. */
static const char *start_problem(const uint8_t *data, size_t size)
{
    size_t shift;

    if (size == 0)
        return NULL;
    if (data[0] != PROTOCOL_1 && data[0] != PROTOCOL_2)
        return "not Bolt";
    shift = data[0] == PROTOCOL_2 ? 1 : 0;
    if (shift && size > 1 && data[1] != 1 && data[1] != 2)
        return "unknown version of Bolt v2";
    if (size > 1 + shift && data[1 + shift] > TYPE_ONEWAY)
        return "unknown type of command";
    if (size > 2 + shift && data[2 + shift] != 0)
        return "unknown command";
    if (size > 3 + shift && data[3 + shift] != COMMAND_HEARTBEAT &&
        data[3 + shift] != (data[1 + shift] == TYPE_RESPONSE ? COMMAND_RESPONSE : COMMAND_REQUEST))
        return "unknown command";
    return NULL;
}

/* How many bytes the fixed part has at least, as far as that is known. */
static size_t least_size(const uint8_t *data, size_t size)
{
    size_t type_at = size > 0 && data[0] == PROTOCOL_2 ? 2 : 1;

    if (size == 0)
        return 0;
    return head_size(data[0], size > type_at ? data[type_at] : TYPE_RESPONSE);
}

/* All of it is there. */
static struct head read_head(const uint8_t *data)
{
    size_t shift = data[0] == PROTOCOL_2 ? 1 : 0;
    const uint8_t *lengths;
    struct head head = {
        .protocol = data[0],
        .revision = shift ? data[1] : 0,
        .type = data[1 + shift],
        .command = read_u16(data + 2 + shift),
        .command_version = data[4 + shift],
        .id = read_u32(data + 5 + shift),
        .codec = data[9 + shift],
        .options = shift ? data[11] : 0,
    };

    lengths = data + head_size(head.protocol, head.type) - 8;
    head.timeout_or_status =
        head.type == TYPE_RESPONSE ? read_u16(lengths - 2) : read_u32(lengths - 4);
    head.class_size = read_u16(lengths);
    head.header_size = read_u16(lengths + 2);
    head.content_size = read_u32(lengths + 4);
    return head;
}

static void put_head(struct output *output, const struct head *head)
{
    bool second = head->protocol == PROTOCOL_2;

    put_u8(output, head->protocol);
    if (second)
        put_u8(output, head->revision);
    put_u8(output, head->type);
    put_u16(output, head->command);
    put_u8(output, head->command_version);
    put_u32(output, head->id);
    put_u8(output, head->codec);
    if (second)
        put_u8(output, head->options);
    if (head->type == TYPE_RESPONSE)
        put_u16(output, (uint16_t)head->timeout_or_status);
    else
        put_u32(output, head->timeout_or_status);
    put_u16(output, (uint16_t)head->class_size);
    put_u16(output, (uint16_t)head->header_size);
    put_u32(output, head->content_size);
}

static bool has_crc(const struct head *head)
{
    return head->revision == 2 && head->options & SWITCH_CRC;
}

static uint64_t frame_size(const struct head *head)
{
    return head_size(head->protocol, head->type) + (uint64_t)head->class_size + head->header_size +
           head->content_size + (has_crc(head) ? CRC_BYTES : 0);
}

/* Behind everything else. */
static void put_crc(struct output *output, const struct head *head)
{
    if (has_crc(head) && !output->full)
        put_u32(output, crc32_of(output->begin, (size_t)(output->at - output->begin)));
}

static bool crc_is_wrong(const struct head *head, const uint8_t *data, size_t size)
{
    return has_crc(head) && crc32_of(data, size - CRC_BYTES) != read_u32(data + size - CRC_BYTES);
}

/* ---- the header section ---- */

struct section {
    const char *at, *end;
};

static bool take_string(struct section *section, struct text *text, bool *null)
{
    uint32_t size;

    if (section->end - section->at < 4)
        return false;
    size = read_u32(section->at);
    section->at += 4;
    *null = size > INT32_MAX;
    if (*null)
        size = 0;
    if (size > (size_t)(section->end - section->at))
        return false;
    *text = (struct text){section->at, size};
    section->at += size;
    return true;
}

/* False: malformed. With *null it is no header. */
static bool take_field(struct section *section, struct field *field, bool *null)
{
    bool no_value;

    if (!take_string(section, &field->name, null) ||
        !take_string(section, &field->value, &no_value))
        return false;
    *null |= no_value;
    return true;
}

/* What the fields say that have a meaning to us. */
static void note_field(struct message *message, const struct field *field, struct text *named)
{
    switch (field->name.size) {
    case 7:
        if (text_equal(field->name, TEXT("service")))
            *named = field->value;
        break;
    case 21:
        if (text_equal(field->name, TEXT("sofa_head_method_name")))
            message->method = field->value;
        break;
    case 24:
        if (text_equal(field->name, TEXT("sofa_head_target_service")))
            message->service = field->value;
        else if (text_equal(field->name, TEXT("sofa_head_response_error")))
            message->service_failed = text_equal(field->value, TEXT("true"));
        break;
    }
}

static bool read_fields(struct section section, struct message *message)
{
    struct text named = {NULL, 0};
    uint32_t count = 0;

    while (section.at < section.end) {
        struct field field;
        bool null;

        if (!take_field(&section, &field, &null))
            return false;
        if (null)
            continue;
        note_field(message, &field, &named);
        if (count < MAX_FIELDS)
            fields[count++] = field;
    }
    if (message->service.size == 0)
        message->service = named;
    message->fields = fields;
    message->field_count = count;
    return true;
}

static struct section section_of(const struct head *head, const uint8_t *frame)
{
    const char *at = (const char *)frame + head_size(head->protocol, head->type) + head->class_size;

    return (struct section){at, at + head->header_size};
}

/* ---- reading ---- */

static enum codec_event fail(struct message *message, const char *problem)
{
    message->problem = problem;
    return CODEC_ERROR;
}

static enum message_kind kind_of(const struct head *head)
{
    if (head->type == TYPE_RESPONSE)
        return head->command == COMMAND_HEARTBEAT ? MESSAGE_HEARTBEAT_ANSWER : MESSAGE_RESPONSE;
    if (head->command == COMMAND_HEARTBEAT)
        return MESSAGE_HEARTBEAT;
    return head->type == TYPE_ONEWAY ? MESSAGE_ONEWAY : MESSAGE_REQUEST;
}

static void tell_head(struct message *message, const struct head *head)
{
    message->kind = kind_of(head);
    message->id = head->id;
    if (head->type == TYPE_RESPONSE) {
        message->status = head->timeout_or_status;
        message->succeeded = message->status == STATUS_SUCCESS;
        message->refused = message->status == STATUS_BUSY;
        return;
    }
    message->facts.version =
        (uint8_t)(head->protocol == PROTOCOL_1 ? 1 : PROTOCOL_2 << 4 | head->revision);
    message->facts.serialization = head->codec;
    message->facts.options = head->options;
    message->facts.heartbeat = head->command == COMMAND_HEARTBEAT;
    if (head->timeout_or_status <= INT32_MAX)
        message->timeout_ms = head->timeout_or_status;
}

/* All of the frame is there. */
static enum codec_event tell_frame(const struct decoder *decoder, const struct head *head,
                                   const uint8_t *data, size_t size, struct message *message)
{
    if (crc_is_wrong(head, data, size))
        return fail(message, "wrong checksum");
    tell_head(message, head);
    if (message->kind == MESSAGE_RESPONSE && !decoder->response)
        return fail(message, "an answer where requests are expected");
    message->frame = (struct text){(const char *)data, (uint32_t)size};
    if (head->command == COMMAND_HEARTBEAT)
        return CODEC_HEAD;
    if (!read_fields(section_of(head, data), message))
        return fail(message, "malformed header section");
    message->service_failed &= message->succeeded;
    message->service_failed |= message->status == STATUS_EXCEPTION;
    return CODEC_HEAD;
}

static enum codec_event bolt_decode(struct decoder *decoder, const uint8_t *data, size_t size,
                                    size_t *consumed, struct message *message)
{
    struct head head;
    uint64_t whole;
    enum codec_event event;

    *consumed = 0;
    *message = (struct message){.problem = start_problem(data, size)};
    if (message->problem)
        return CODEC_ERROR;
    decoder->state |= size > 0;
    message->wanted = least_size(data, size);
    if (size == 0 || size < message->wanted)
        return CODEC_MORE;
    head = read_head(data);
    whole = frame_size(&head);
    if (head.class_size > MAX_SECTION || head.header_size > MAX_SECTION)
        return fail(message, "a length that is out of range");
    if (whole > decoder->limits->frame_bytes)
        return fail(message, "the frame is too long");
    message->wanted = whole;
    if (size < whole)
        return CODEC_MORE;
    event = tell_frame(decoder, &head, data, whole, message);
    if (event == CODEC_HEAD) {
        *consumed = whole;
        decoder->state = 0;
    }
    return event;
}

static enum codec_event bolt_finish(struct decoder *decoder, struct message *message)
{
    *message = (struct message){0};
    return decoder->state == 0 ? CODEC_MORE : fail(message, "the connection ended in a frame");
}

static enum detection bolt_detect(const uint8_t *data, size_t size)
{
    size_t shift = data[0] == PROTOCOL_2 ? 1 : 0;

    if (start_problem(data, size) || (size > 1 + shift && data[1 + shift] == TYPE_RESPONSE))
        return DETECT_NO;
    return size < 4 + shift ? DETECT_MORE : DETECT_YES;
}

/* ---- writing ---- */

static void put_text(struct output *output, struct text text)
{
    put(output, text.at, text.size);
}

static void put_string(struct output *output, struct text text)
{
    put_u32(output, text.size);
    put_text(output, text);
}

/* Whether the rewriting removes a header, or replaces it. */
static bool is_replaced(const struct rewrite *rewrite, struct text name)
{
    if (!rewrite)
        return false;
    if (rewrite->original_destination.size > 0 &&
        text_equal_folded(name, rewrite->original_destination))
        return true;
    for (uint32_t i = 0; i < rewrite->set_count; i++)
        if (text_equal_folded(name, rewrite->set[i].name))
            return true;
    for (uint32_t i = 0; i < rewrite->remove_count; i++)
        if (text_equal_folded(name, rewrite->remove[i]))
            return true;
    return false;
}

static void put_rewritten(struct output *output, const struct adjustment *adjustment)
{
    const struct rewrite *rewrite = adjustment->rewrite;

    for (uint32_t i = 0; i < rewrite->set_count; i++) {
        put_string(output, rewrite->set[i].name);
        put_string(output, rewrite->set[i].value);
    }
    if (rewrite->original_destination.size > 0) {
        put_string(output, rewrite->original_destination);
        put_string(output, adjustment->original_destination);
    }
}

static void put_trace(struct output *output, const struct adjustment *adjustment)
{
    const struct trace_fields *trace = adjustment->trace;

    for (uint32_t i = 0; i < trace->count; i++) {
        if (is_replaced(adjustment->rewrite, trace->set[i].name))
            continue;
        put_string(output, trace->set[i].name);
        put_string(output, trace->set[i].value);
    }
}

static void put_section(struct output *output, struct section section,
                        const struct adjustment *adjustment)
{
    struct field field;
    bool null;

    while (section.at < section.end) {
        const char *from = section.at;

        if (!take_field(&section, &field, &null))
            break; /* decode() would have refused it */
        if (!is_replaced(adjustment->rewrite, field.name) &&
            !trace_fields_replace(adjustment->trace, field.name))
            put(output, from, (size_t)(section.at - from));
    }
    if (adjustment->rewrite)
        put_rewritten(output, adjustment);
    if (adjustment->trace)
        put_trace(output, adjustment);
}

static bool rewrites_headers(const struct rewrite *rewrite)
{
    return rewrite && (rewrite->set_count > 0 || rewrite->remove_count > 0 ||
                       rewrite->original_destination.size > 0);
}

/* Of bare SOFABolt, which has no headers, nobody knows what it would make of some; and a section
 * that is full stays as it is. */
static bool takes_trace(const struct head *head, const struct trace_fields *trace)
{
    return head->header_size > 0 && head->header_size + trace_fields_size(trace, 8) <= MAX_SECTION;
}

static bool changes_headers(const struct head *head, const struct adjustment *adjustment)
{
    return head->type != TYPE_RESPONSE &&
           (rewrites_headers(adjustment->rewrite) || adjustment->trace);
}

/* The protocol that whoever sent the request understands: SOFABolt answers in that of the first
 * frame on the connection, which is someone else's where a connection is shared. */
static void adapt(struct head *head, const struct facts *facts)
{
    uint8_t protocol = facts->version >> 4 ? facts->version >> 4 : facts->version;

    if (head->type != TYPE_RESPONSE || protocol == 0 || protocol == head->protocol)
        return;
    head->protocol = protocol;
    head->revision = facts->version & (protocol == PROTOCOL_2 ? 15 : 0);
    head->options = protocol == PROTOCOL_2 ? facts->options : 0;
}

/* As it is, but for what is in the fixed part. */
static size_t copy_frame(struct text frame, const struct head *head, uint8_t *to, size_t room)
{
    if (room < frame.size)
        return 0;
    memcpy(to, frame.at, frame.size);
    write_u32(to + (head->protocol == PROTOCOL_2 ? 6 : 5), head->id);
    if (has_crc(head))
        write_u32(to + frame.size - CRC_BYTES, crc32_of(to, frame.size - CRC_BYTES));
    return frame.size;
}

/* Put together anew: `head` is the new one, `old` that of the frame. */
static size_t compose(const struct head *old, const uint8_t *frame, struct head *head,
                      const struct adjustment *adjustment, uint8_t *to, size_t room)
{
    struct output output = output_to(to, room), sizes;
    struct section section = section_of(old, frame);
    size_t header_at;

    put_head(&output, head);
    put(&output, section.at - old->class_size, old->class_size);
    header_at = (size_t)(output.at - output.begin);
    if (changes_headers(head, adjustment))
        put_section(&output, section, adjustment);
    else
        put(&output, section.at, old->header_size);
    if (output.full)
        return 0;
    head->header_size = (uint32_t)((size_t)(output.at - output.begin) - header_at);
    if (head->header_size > MAX_SECTION)
        return 0;
    sizes = output_to(to, room);
    put_head(&sizes, head); /* now that the length is known */
    put(&output, section.end, old->content_size);
    put_crc(&output, head);
    return output_size(&output);
}

static size_t bolt_encode(struct encoder *encoder, const struct message *message,
                          const struct adjustment *adjustment, uint8_t *to, size_t room)
{
    const uint8_t *frame = (const uint8_t *)message->frame.at;
    struct head old = read_head(frame), head = old;
    struct adjustment possible = *adjustment;

    (void)encoder;
    head.id = (uint32_t)adjustment->id;
    adapt(&head, &adjustment->facts);
    if (possible.trace && !takes_trace(&old, possible.trace))
        possible.trace = NULL;
    if (head.protocol == old.protocol && !changes_headers(&old, &possible))
        return copy_frame(message->frame, &head, to, room);
    return compose(&old, frame, &head, &possible, to, room);
}

/* ---- frames of our own ---- */

static struct head head_for(const struct facts *facts, uint64_t id, uint8_t type, uint16_t command)
{
    uint8_t protocol = facts->version >> 4 ? PROTOCOL_2 : PROTOCOL_1;

    return (struct head){
        .protocol = protocol,
        .revision = facts->version >> 4 ? facts->version & 15 : 0,
        .type = type,
        .command_version = 1,
        .codec = facts->serialization ? facts->serialization : HESSIAN,
        .options = facts->options,
        .command = command,
        .id = (uint32_t)id,
    };
}

static size_t put_frame(struct head *head, struct text class_name, uint8_t *to, size_t room)
{
    struct output output = output_to(to, room);

    head->class_size = class_name.size;
    put_head(&output, head);
    put_text(&output, class_name);
    put_crc(&output, head);
    return output_size(&output);
}

/* What SOFARPC makes of them: docs/requests.md. Never 2, which wants an exception as content. */
static uint16_t status_for(enum dp_flag flag)
{
    switch (flag) {
    case DP_FLAG_NO_ROUTE:
    case DP_FLAG_REFUSED:
        return STATUS_NO_PROCESSOR;
    case DP_FLAG_TIMEOUT:
        return STATUS_TIMEOUT;
    case DP_FLAG_OVERLOAD:
    case DP_FLAG_RATE_LIMITED:
        return STATUS_BUSY;
    case DP_FLAG_MALFORMED_REQUEST:
    case DP_FLAG_MALFORMED_RESPONSE:
        return STATUS_CODEC;
    default:
        return STATUS_CLOSED;
    }
}

static size_t bolt_reject(const struct facts *facts, uint64_t id, const struct rejection *rejection,
                          uint8_t *to, size_t room)
{
    struct head head = head_for(facts, id, TYPE_RESPONSE, COMMAND_RESPONSE);

    head.timeout_or_status = rejection->own_status;
    if (head.timeout_or_status == 0)
        head.timeout_or_status = status_for(rejection->flag);
    if (rejection->status)
        *rejection->status = head.timeout_or_status;
    /* There is no content, but anthunder reads no answer without a class. */
    return put_frame(&head, TEXT("com.alipay.sofa.rpc.core.response.SofaResponse"), to, room);
}

static size_t bolt_heartbeat(const struct facts *facts, uint64_t id, uint8_t *to, size_t room)
{
    struct head head = head_for(facts, id, TYPE_REQUEST, COMMAND_HEARTBEAT);

    head.timeout_or_status = UINT32_MAX; /* none: as SOFABolt */
    return put_frame(&head, TEXT(""), to, room);
}

static size_t bolt_answer_heartbeat(const struct message *message, uint8_t *to, size_t room)
{
    struct head head = head_for(&message->facts, message->id, TYPE_RESPONSE, COMMAND_HEARTBEAT);

    return put_frame(&head, TEXT(""), to, room);
}

const struct codec codec_bolt = {
    .name = "bolt",
    .protocol = DP_BOLT,
    .multiplexes = true,
    .detect = bolt_detect,
    .decode = bolt_decode,
    .finish = bolt_finish,
    .encode = bolt_encode,
    .reject = bolt_reject,
    .heartbeat = bolt_heartbeat,
    .answer_heartbeat = bolt_answer_heartbeat,
};
