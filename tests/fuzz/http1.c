/* The codec of HTTP/1.1. Whatever comes:
 *
 * - any split of it tells the same;
 * - what is passed on is one message, which means the same to us when we read it, and is passed on
 *   as it is;
 * - nothing is read or written outside of its room.
 *
 * An input is three bytes that choose, and what a connection brings. */
#include "l7/codec.h"

#include "fuzz.h"

enum { LONGEST = 1 << 16, HEAD_BYTES = 1024 };

static const struct limits limits = {.line_bytes = 512, .head_bytes = HEAD_BYTES, .fields = 24};

/* What is passed on may be a little larger. */
static const struct limits larger = {
    .line_bytes = 512 + ENCODING_ROOM, .head_bytes = HEAD_BYTES + ENCODING_ROOM, .fields = 32};

struct bytes {
    uint8_t at[LONGEST];
    size_t size;
};

static void add(struct bytes *bytes, const void *data, size_t size)
{
    CHECK(bytes->size + size <= sizeof bytes->at);
    if (size > 0)
        memcpy(bytes->at + bytes->size, data, size);
    bytes->size += size;
}

static void add_text(struct bytes *bytes, struct text text)
{
    add(bytes, &text.size, sizeof text.size);
    add(bytes, text.at, text.size);
}

static void check_same(const struct bytes *one, const struct bytes *other)
{
    CHECK(one->size == other->size);
    CHECK(memcmp(one->at, other->at, one->size) == 0);
}

/* ---- what was decoded, as bytes; DATA is put together ---- */

static void add_fields(struct bytes *story, const struct message *message)
{
    CHECK(message->field_count <= limits.fields);
    for (uint32_t i = 0; i < message->field_count; i++) {
        add_text(story, message->fields[i].name);
        add_text(story, message->fields[i].value);
    }
}

static void add_head(struct bytes *story, const struct message *message)
{
    const bool flags[] = {
        message->facts.http10,  message->facts.head,       message->facts.keep_alive,
        message->facts.upgrade, message->expects_continue, message->upgraded,
        message->has_body,      message->until_close,      message->last,
    };

    add(story, &message->kind, sizeof message->kind);
    add(story, &message->status, sizeof message->status);
    add(story, &message->body_size, sizeof message->body_size);
    add(story, flags, sizeof flags);
    add_text(story, message->method);
    add_text(story, message->path);
    add_text(story, message->authority);
    add_text(story, message->service);
    add_text(story, message->reason);
    add_fields(story, message);
}

static void check_head(const struct message *message)
{
    if (message->kind == MESSAGE_REQUEST) {
        CHECK(message->method.size > 0 && message->path.size > 0);
        CHECK(message->path.at[0] == '/' || message->path.at[0] == '*');
        CHECK(message->facts.keep_alive != message->last);
        CHECK(!message->expects_continue || message->has_body);
        CHECK(message->authority.size >= message->service.size);
        CHECK(message->facts.http10 || message->service.size > 0);
    } else {
        CHECK(message->status >= 100 && message->status < 600);
    }
    CHECK(!message->until_close || (message->last && message->body_size == UINT64_MAX));
    CHECK(message->has_body || message->kind != MESSAGE_REQUEST || message->body_size == 0);
}

static void add_event(struct bytes *story, enum codec_event event, const struct message *message)
{
    switch (event) {
    case CODEC_DATA:
        CHECK(message->data.size > 0);
        add(story, message->data.at, message->data.size);
        return;
    case CODEC_HEAD:
        check_head(message);
        add(story, "\nHEAD", 5);
        add_head(story, message);
        return;
    case CODEC_END:
        add(story, "\nEND", 4);
        add_fields(story, message);
        return;
    default:
        CHECK(event == CODEC_ERROR && message->problem && message->http_status >= 400);
        add(story, "\nERROR", 6);
        add(story, &message->http_status, sizeof message->http_status);
        add(story, message->problem, strlen(message->problem));
    }
}

/* From a copy, at whose end the address sanitizer watches. */
static enum codec_event decode(struct decoder *decoder, const uint8_t *data, size_t size,
                               size_t *consumed, struct bytes *story)
{
    uint8_t *copy = malloc(size);
    struct message message;
    enum codec_event event;

    memcpy(copy, data, size);
    event = codec_http1.decode(decoder, copy, size, consumed, &message);
    CHECK(*consumed <= size);
    if (event != CODEC_MORE)
        add_event(story, event, &message);
    else
        CHECK(decoder->scanned <= size - *consumed);
    free(copy);
    return event;
}

static void read_in_pieces(struct decoder decoder, const uint8_t *data, size_t size, uint32_t piece,
                           struct bytes *story)
{
    struct message message;
    size_t from = 0, to = 0, consumed;
    enum codec_event event;

    story->size = 0;
    for (;;) {
        event = decode(&decoder, data + from, to - from, &consumed, story);
        from += consumed;
        if (event == CODEC_ERROR)
            return;
        if (event == CODEC_MORE && to == size)
            break;
        if (event == CODEC_MORE)
            to += piece < size - to ? piece : size - to;
    }
    event = codec_http1.finish(&decoder, &message);
    if (event != CODEC_MORE)
        add_event(story, event, &message);
}

/* ---- what is passed on ---- */

/* Reads one message and writes it again. Returns false where it is not all there, or none that is
 * passed on; else stores how much was read. */
static bool pass_on(struct decoder *decoder, const uint8_t *data, size_t size, size_t *from,
                    const struct adjustment *adjustment, struct bytes *to)
{
    struct encoder encoder = {.chunked = false};
    struct message message;
    size_t consumed, written;
    enum codec_event event = codec_http1.decode(decoder, data, size, from, &message);
    size_t head_size = *from + ENCODING_ROOM;

    if (event != CODEC_HEAD || text_equal(message.method, TEXT("CONNECT")))
        return false;
    to->size = 0;
    written = codec_http1.encode(&encoder, &message, adjustment, to->at, head_size);
    CHECK(written > 0);
    CHECK(codec_http1.encode(&encoder, &message, adjustment, to->at, written - 1) == 0);
    to->size = codec_http1.encode(&encoder, &message, adjustment, to->at, written);
    CHECK(to->size == written);
    for (;;) {
        event = codec_http1.decode(decoder, data + *from, size - *from, &consumed, &message);
        *from += consumed;
        if (event == CODEC_MORE)
            event = codec_http1.finish(decoder, &message);
        if (event != CODEC_DATA)
            break;
        CHECK(!encoder.no_body);
        to->size += codec_http1.before_data(&encoder, message.data.size, to->at + to->size);
        add(to, message.data.at, message.data.size);
        to->size += codec_http1.after_data(&encoder, to->at + to->size);
    }
    if (event == CODEC_END)
        to->size += codec_http1.end(&encoder, &message, to->at + to->size, LONGEST - to->size);
    return event == CODEC_END;
}

/* What was passed on is passed on as it is: it is one message, and as we understand it. */
static void check_passed_on(struct decoder decoder, const struct adjustment *adjustment,
                            const struct bytes *passed)
{
    static struct bytes again;
    size_t from;

    decoder.limits = &larger;
    CHECK(pass_on(&decoder, passed->at, passed->size, &from, adjustment, &again));
    CHECK(from == passed->size);
    check_same(passed, &again);
}

static void pass_all_on(struct decoder decoder, const uint8_t *data, size_t size,
                        const struct adjustment *adjustment)
{
    static struct bytes passed;
    struct decoder fresh = decoder;
    size_t from;

    while (pass_on(&decoder, data, size, &from, adjustment, &passed)) {
        check_passed_on(fresh, adjustment, &passed);
        if (from == 0)
            return;
        data += from;
        size -= from;
    }
}

/* ---- what an input chooses ---- */

static const struct field set[] = {{TEXT("X-Set"), TEXT("1")}, {TEXT("Bad"), TEXT("a\nb: c")}};
static const struct text removed[] = {TEXT("A")};
static const struct rewrite rewrite = {
    .host = TEXT("h:1"),
    .set = set,
    .set_count = 2,
    .remove = removed,
    .remove_count = 1,
    .original_destination = TEXT("X-Original"),
};

static void check_detection(const uint8_t *data, size_t size)
{
    enum detection before = DETECT_MORE, now;

    for (size_t count = 1; count <= size && count < 64; count++, before = now) {
        now = codec_http1.detect(data, count);
        CHECK(before == DETECT_MORE || now == before);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct bytes whole, pieces;
    struct input input = {data, size};
    uint8_t choice = take_u8(&input), piece = take_u8(&input), facts = take_u8(&input);
    struct decoder decoder = {.limits = &limits, .response = choice & 1};
    struct adjustment adjustment = {
        .rewrite = choice & 2 ? &rewrite : NULL,
        .original_destination = TEXT("10.0.0.1:80"),
        .facts = {.http10 = facts & 1,
                  .head = facts & 2,
                  .keep_alive = facts & 4,
                  .upgrade = facts & 8},
        .close = choice & 4,
    };

    if (decoder.response)
        codec_http1.expect(&decoder, &adjustment.facts);
    read_in_pieces(decoder, input.at, input.left, UINT32_MAX, &whole);
    read_in_pieces(decoder, input.at, input.left, 1, &pieces);
    check_same(&whole, &pieces);
    read_in_pieces(decoder, input.at, input.left, piece ? piece : 1, &pieces);
    check_same(&whole, &pieces);
    pass_all_on(decoder, input.at, input.left, &adjustment);
    check_detection(input.at, input.left);
    return 0;
}
