/* The codec of Dubbo, and the skipper of Hessian 2 within it: against one that is written straight
 * from the specification's grammar (hessian.caucho.com/doc/hessian-serialization.html),
 * recursively.
 *
 * With bit 1 of the first byte an input is a value, else what came on a connection. */
#include "../../pysidecar/dataplane/l7/dubbo.c"
#include "../../pysidecar/dataplane/l7/hessian.c"
#include "../../pysidecar/dataplane/l7/trace_context.h"

#include "frames.h"

/* ---- the grammar ---- */

enum { MAX_CLASSES = 512 };

struct stream {
    const uint8_t *data;
    size_t at, size;
    uint32_t fields[MAX_CLASSES], classes;
    uint32_t deepest;
};

static int peek(const struct stream *stream)
{
    return stream->at < stream->size ? stream->data[stream->at] : -1;
}

static bool pass(struct stream *stream, size_t count)
{
    if (stream->size - stream->at < count)
        return false;
    stream->at += count;
    return true;
}

static bool in(int tag, int first, int last)
{
    return tag >= first && tag <= last;
}

/* int ::= 'I' b3 b2 b1 b0 | [x80-xbf] | [xc0-xcf] b0 | [xd0-xd7] b1 b0 */
static bool an_int(struct stream *stream, int64_t *value)
{
    const uint8_t *at = stream->data + stream->at;
    int tag = peek(stream);

    if (in(tag, 0x80, 0xbf) && pass(stream, 1))
        *value = tag - 0x90;
    else if (in(tag, 0xc0, 0xcf) && pass(stream, 2))
        *value = (tag - 0xc8) * 256 + at[1];
    else if (in(tag, 0xd0, 0xd7) && pass(stream, 3))
        *value = (tag - 0xd4) * 65536 + at[1] * 256 + at[2];
    else if (tag == 'I' && pass(stream, 5))
        *value = (int32_t)((uint32_t)at[1] << 24 | at[2] << 16 | at[3] << 8 | at[4]);
    else
        return false;
    return true;
}

/* "a character is a 16-bit UTF-16 unit", each in UTF-8; or a whole one of two units */
static bool characters(struct stream *stream, uint32_t units)
{
    static const struct {
        uint8_t mask, lead;
        size_t size;
        uint32_t units;
    } forms[] = {{0x80, 0, 1, 1}, {0xe0, 0xc0, 2, 1}, {0xf0, 0xe0, 3, 1}, {0xf8, 0xf0, 4, 2}};

    while (units > 0) {
        size_t form = 0;

        while (form < 4 &&
               (peek(stream) < 0 || (peek(stream) & forms[form].mask) != forms[form].lead))
            form++;
        if (form == 4 || forms[form].units > units || !pass(stream, forms[form].size))
            return false;
        for (size_t i = stream->at - forms[form].size + 1; i < stream->at; i++)
            if (stream->data[i] >> 6 != 2)
                return false;
        units -= forms[form].units;
    }
    return true;
}

static size_t two(const struct stream *stream)
{
    return (size_t)stream->data[stream->at - 2] << 8 | stream->data[stream->at - 1];
}

/* string ::= 'R' b1 b0 <utf8-data> string | 'S' b1 b0 <utf8-data> | [x00-x1f] <utf8-data>
 *          | [x30-x33] b0 <utf8-data> */
static bool a_string(struct stream *stream)
{
    int tag = peek(stream);

    if (tag == 'R')
        return pass(stream, 3) && characters(stream, two(stream)) && a_string(stream);
    if (tag == 'S')
        return pass(stream, 3) && characters(stream, two(stream));
    if (in(tag, 0, 0x1f))
        return pass(stream, 1) && characters(stream, tag);
    return in(tag, 0x30, 0x33) && pass(stream, 2) &&
           characters(stream, (tag - 0x30) * 256 + stream->data[stream->at - 1]);
}

/* binary ::= 'A' b1 b0 <binary-data> binary | 'B' b1 b0 <binary-data> | [x20-x2f] <binary-data>
 *          | [x34-x37] b0 <binary-data> */
static bool a_binary(struct stream *stream)
{
    int tag = peek(stream);

    if (tag == 'A')
        return pass(stream, 3) && pass(stream, two(stream)) && a_binary(stream);
    if (tag == 'B')
        return pass(stream, 3) && pass(stream, two(stream));
    if (in(tag, 0x20, 0x2f))
        return pass(stream, 1 + tag - 0x20);
    return in(tag, 0x34, 0x37) && pass(stream, 2) &&
           pass(stream, (tag - 0x34) * 256 + stream->data[stream->at - 1]);
}

/* What has a size that its tag tells; 0: it is none of those. */
static size_t fixed_size(int tag)
{
    static const struct {
        uint8_t first, last, size;
    } sizes[] = {
        {'N', 'N', 1},   {'T', 'T', 1},   {'F', 'F', 1},   {0x5b, 0x5c, 1}, {0x5d, 0x5d, 2},
        {0x5e, 0x5e, 3}, {0x5f, 0x5f, 5}, {'D', 'D', 9},   {0x4a, 0x4a, 9}, {0x4b, 0x4b, 5},
        {0xd8, 0xef, 1}, {0xf0, 0xff, 2}, {0x38, 0x3f, 3}, {0x59, 0x59, 5}, {'L', 'L', 9},
    };

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (in(tag, sizes[i].first, sizes[i].last))
            return sizes[i].size;
    return 0;
}

static bool a_value(struct stream *stream, uint32_t depth);

static bool values(struct stream *stream, int64_t count, uint32_t depth)
{
    for (; count > 0; count--)
        if (!a_value(stream, depth + 1))
            return false;
    return count == 0;
}

static bool until_end(struct stream *stream, int64_t at_once, uint32_t depth)
{
    while (peek(stream) != 'Z')
        if (!values(stream, at_once, depth))
            return false;
    return pass(stream, 1);
}

/* type ::= string | int */
static bool a_type(struct stream *stream)
{
    int64_t number;

    return an_int(stream, &number) || a_string(stream);
}

/* list ::= x55 type value* 'Z' | 'V' type int value* | x57 value* 'Z' | x58 int value*
 *        | [x70-77] type value* | [x78-7f] value*
 * map  ::= 'M' type (value value)* 'Z' | 'H' (value value)* 'Z' */
static bool a_list_or_map(struct stream *stream, uint32_t depth)
{
    int tag = peek(stream);
    int64_t length;

    if (!pass(stream, 1))
        return false;
    switch (tag) {
    case 0x55:
        return a_type(stream) && until_end(stream, 1, depth);
    case 'V':
        return a_type(stream) && an_int(stream, &length) && values(stream, length, depth);
    case 0x57:
        return until_end(stream, 1, depth);
    case 0x58:
        return an_int(stream, &length) && values(stream, length, depth);
    case 'M':
        return a_type(stream) && until_end(stream, 2, depth);
    case 'H':
        return until_end(stream, 2, depth);
    }
    if (in(tag, 0x70, 0x77))
        return a_type(stream) && values(stream, tag - 0x70, depth);
    return in(tag, 0x78, 0x7f) && values(stream, tag - 0x78, depth);
}

/* class-def ::= 'C' string int string* */
static bool a_class(struct stream *stream)
{
    int64_t count;

    if (!pass(stream, 1) || !a_string(stream) || !an_int(stream, &count) || count < 0)
        return false;
    for (int64_t i = 0; i < count; i++)
        if (!a_string(stream))
            return false;
    CHECK(stream->classes < MAX_CLASSES);
    stream->fields[stream->classes++] = (uint32_t)count;
    return true;
}

/* object ::= 'O' int value* | [x60-x6f] value* */
static bool an_object(struct stream *stream, uint32_t depth)
{
    int tag = peek(stream);
    int64_t number = tag - 0x60;

    if (!pass(stream, 1) || (tag == 'O' && !an_int(stream, &number)))
        return false;
    return number >= 0 && number < stream->classes && values(stream, stream->fields[number], depth);
}

/* ref ::= x51 int */
static bool a_value(struct stream *stream, uint32_t depth)
{
    int tag = peek(stream);
    int64_t number;

    if (depth > stream->deepest)
        stream->deepest = depth;
    if (tag == 'C')
        return a_class(stream) && a_value(stream, depth);
    if (fixed_size(tag) > 0)
        return pass(stream, fixed_size(tag));
    if (tag == 0x51)
        return pass(stream, 1) && an_int(stream, &number);
    if (in(tag, 0x80, 0xd7) || tag == 'I')
        return an_int(stream, &number);
    if (in(tag, 0, 0x1f) || in(tag, 0x30, 0x33) || tag == 'R' || tag == 'S')
        return a_string(stream);
    if (in(tag, 0x20, 0x2f) || in(tag, 0x34, 0x37) || tag == 'A' || tag == 'B')
        return a_binary(stream);
    if (in(tag, 0x60, 0x6f) || tag == 'O')
        return an_object(stream, depth);
    return a_list_or_map(stream, depth);
}

static void compare(const uint8_t *data, size_t size)
{
    struct stream expected = {.data = data, .size = size};
    struct hessian hessian;

    hessian_begin(&hessian, data, size);
    while (expected.at < size) {
        bool valid = a_value(&expected, 0);

        if (expected.deepest > HESSIAN_DEPTH || expected.classes > HESSIAN_CLASSES)
            return; /* more than is taken */
        CHECK(hessian_skip(&hessian) == valid);
        if (!valid)
            return;
        CHECK(hessian.at == data + expected.at);
    }
}

/* ---- frames ---- */

static void check_group(const struct message *message)
{
    struct text last = {NULL, 0};

    for (uint32_t i = 0; i < message->field_count; i++)
        if (text_equal(message->fields[i].name, TEXT("group")))
            last = message->fields[i].value;
    CHECK(message->field_count == MAX_FIELDS || text_equal(message->group, last));
}

/* With another context of a trace, everything else is as it was. */
static void pass_on_traced(const struct message *message)
{
    struct trace_fields trace = {.replaced = 1 /* traceparent */, .count = 1};
    struct adjustment adjustment = {.id = 1, .trace = &trace};
    struct encoder encoder = {0};
    struct text group = message->group;
    struct message after;
    size_t room = message->frame.size + ENCODING_ROOM, size;
    uint8_t *to = malloc(room);
    uint32_t kept = 0, count = message->field_count;

    trace.set[0] = (struct field){TEXT("traceparent"), TEXT("00-0123456789abcdef-01")};
    for (uint32_t i = 0; i < count; i++)
        kept += !text_equal_folded(message->fields[i].name, trace.set[0].name);
    size = codec_dubbo.encode(&encoder, message, &adjustment, to, room);
    CHECK(size > 0 && codec_dubbo.encode(&encoder, message, &adjustment, to, size - 1) == 0);
    CHECK(codec_dubbo.encode(&encoder, message, &adjustment, to, size) == size);
    decode_own(&codec_dubbo, false, to, size, &after);
    CHECK(after.attachments_end == (const char *)to + size - 1);
    CHECK(count == MAX_FIELDS || after.field_count == kept + 1);
    CHECK(count == MAX_FIELDS || text_equal(after.fields[kept].value, trace.set[0].value));
    CHECK(text_equal(after.group, group) && text_equal(after.method, message->method));
    free(to);
}

static void pass_on(const struct message *message, bool response)
{
    struct adjustment adjustment = {.id = ~message->id};
    struct encoder encoder = {0};
    struct message after;
    size_t size = message->frame.size;
    uint8_t *to = malloc(size);

    CHECK(codec_dubbo.encode(&encoder, message, &adjustment, to, size - 1) == 0);
    CHECK(codec_dubbo.encode(&encoder, message, &adjustment, to, size) == size);
    decode_own(&codec_dubbo, response, to, size, &after);
    CHECK(after.kind == message->kind && after.id == adjustment.id);
    CHECK(text_equal(after.service, message->service) && text_equal(after.group, message->group));
    free(to);
}

static void answer(const struct message *message)
{
    uint8_t to[ENCODING_ROOM];
    uint32_t status;
    struct rejection rejection = {
        .flag = message->id % DP_FLAGS, .status = &status, .reason = message->service};
    struct message after;
    size_t size;

    if (message->kind == MESSAGE_HEARTBEAT) {
        size = codec_dubbo.answer_heartbeat(message, to, sizeof to);
        if (size == 0)
            return;
        decode_own(&codec_dubbo, true, to, size, &after);
        CHECK(after.kind == MESSAGE_HEARTBEAT_ANSWER && after.id == message->id);
        return;
    }
    size = codec_dubbo.reject(&message->facts, message->id, &rejection, to, sizeof to);
    decode_own(&codec_dubbo, true, to, size, &after);
    CHECK(after.id == message->id && after.status == status && !after.succeeded);
}

static void each(const struct message *message)
{
    check_group(message);
    if (message->attachments_end) /* first: what is decoded takes the place of the fields */
        pass_on_traced(message);
    if (message->kind == MESSAGE_HEARTBEAT || message->kind == MESSAGE_REQUEST)
        answer(message);
    if (message->kind != MESSAGE_HEARTBEAT && message->kind != MESSAGE_HEARTBEAT_ANSWER)
        pass_on(message, message->kind == MESSAGE_RESPONSE);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    uint8_t how = take_u8(&input), step;

    if (how & 2) {
        compare(input.at, input.left);
        return 0;
    }
    step = take_u8(&input);
    check_splits(&codec_dubbo, how & 1, input.at, input.left, step + 1, each);
    return 0;
}
