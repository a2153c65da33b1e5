/* The codec of Bolt: the same messages however the input is cut, only what is in it, and frames
 * that are passed on or made here are in order and say the same, but for what is changed. */
#include "../../pysidecar/dataplane/l7/bolt.c"
#include "../../pysidecar/dataplane/l7/checksum.c"

#include "frames.h"

static struct field changed[2];
static struct text removed;
static struct rewrite rewrite = {.set = changed, .remove = &removed};
static struct facts asked;

static bool is_named(const struct field *field, struct text name)
{
    return text_equal_folded(field->name, name);
}

static bool is_rewritten(const struct field *field)
{
    for (uint32_t i = 0; i < rewrite.set_count; i++)
        if (is_named(field, changed[i].name))
            return true;
    return (rewrite.remove_count > 0 && is_named(field, removed)) ||
           (rewrite.original_destination.size > 0 && is_named(field, rewrite.original_destination));
}

/* The fields of the one that are not rewritten are the other's, in their order; behind them are the
 * new ones. */
static void check_fields(const struct field *before, uint32_t count, const struct message *after)
{
    uint32_t found = 0, added = rewrite.set_count + (rewrite.original_destination.size > 0);

    for (uint32_t i = 0; i < count; i++) {
        if (is_rewritten(&before[i]))
            continue;
        CHECK(found < after->field_count);
        CHECK(text_equal(before[i].name, after->fields[found].name) &&
              text_equal(before[i].value, after->fields[found].value));
        found++;
    }
    CHECK(count == MAX_FIELDS || after->field_count == found + added);
    for (uint32_t i = 0; i < rewrite.set_count && count < MAX_FIELDS; i++)
        CHECK(text_equal(after->fields[found + i].name, changed[i].name) &&
              text_equal(after->fields[found + i].value, changed[i].value));
}

static void pass_on(const struct message *message)
{
    static const size_t room = 600 + ENCODING_ROOM + 3 * 2 * 300;
    static struct field before[MAX_FIELDS];
    bool request = message->kind == MESSAGE_REQUEST || message->kind == MESSAGE_ONEWAY;
    struct adjustment adjustment = {.id = UINT32_MAX - message->id,
                                    .rewrite = request ? &rewrite : NULL,
                                    .original_destination = TEXT("[::1]:80")};
    struct encoder encoder = {0};
    struct message after;
    uint32_t count = message->field_count;
    uint8_t *to = malloc(room), *exact;
    size_t size;

    memcpy(before, message->fields, count * sizeof *before);
    if (message->kind == MESSAGE_RESPONSE)
        adjustment.facts = asked;
    size = codec_bolt.encode(&encoder, message, &adjustment, to, room);
    CHECK(size > 0);
    exact = malloc(size);
    CHECK(codec_bolt.encode(&encoder, message, &adjustment, exact, size) == size);
    CHECK(memcmp(exact, to, size) == 0);
    CHECK(codec_bolt.encode(&encoder, message, &adjustment, to, size - 1) == 0);
    decode_own(&codec_bolt, !request, exact, size, &after);
    CHECK(after.kind == message->kind && after.id == adjustment.id);
    CHECK(after.status == message->status && after.timeout_ms == message->timeout_ms);
    CHECK(after.facts.version == message->facts.version);
    if (request)
        check_fields(before, count, &after);
    free(exact);
    free(to);
}

static void answer(const struct message *message)
{
    uint8_t to[ENCODING_ROOM];
    uint32_t status;
    struct rejection rejection = {.flag = message->id % DP_FLAGS, .status = &status};
    struct message after;
    size_t size;

    if (message->kind == MESSAGE_HEARTBEAT) {
        size = codec_bolt.answer_heartbeat(message, to, sizeof to);
        decode_own(&codec_bolt, true, to, size, &after);
        CHECK(after.kind == MESSAGE_HEARTBEAT_ANSWER && after.id == message->id);
        return;
    }
    size = codec_bolt.reject(&message->facts, message->id, &rejection, to, sizeof to);
    decode_own(&codec_bolt, true, to, size, &after);
    CHECK(after.id == message->id && after.status == status && !after.succeeded && status != 2);
}

static void each(const struct message *message)
{
    if (message->kind == MESSAGE_HEARTBEAT || message->kind == MESSAGE_REQUEST)
        answer(message);
    if (message->kind != MESSAGE_HEARTBEAT && message->kind != MESSAGE_HEARTBEAT_ANSWER)
        pass_on(message);
}

static struct text take_text(struct input *input)
{
    size_t size = take_u8(input) & 15;
    struct text text;

    if (size > input->left)
        size = input->left;
    text = (struct text){(const char *)input->at, (uint32_t)size};
    input->at += size;
    input->left -= size;
    return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t versions[] = {0, 1, 0x21, 0x22};
    struct input input = {data, size};
    uint8_t how = take_u8(&input), step = take_u8(&input);

    asked = (struct facts){.version = versions[how >> 1 & 3], .options = how >> 3 & 1};
    rewrite.set_count = how >> 4 & 1;
    rewrite.remove_count = how >> 5 & 1;
    rewrite.original_destination = how >> 6 & 1 ? TEXT("x-original") : TEXT("");
    changed[0] = (struct field){TEXT("app"), TEXT("mesh")};
    if (how >> 7) {
        changed[0] = (struct field){take_text(&input), take_text(&input)};
        removed = take_text(&input);
    } else {
        removed = TEXT("uid");
    }
    check_splits(&codec_bolt, how & 1, input.at, input.left, step + 1, each);
    return 0;
}
