/* What the targets of the codecs of frames share: an input is what came on a connection, and some
 * bytes in front of it say how. */
#ifndef FUZZ_FRAMES_H
#define FUZZ_FRAMES_H

#include "l7/codec.h"

#include "fuzz.h"

enum { MAX_FRAMES = 64 };

static const struct limits frame_limits = {.frame_bytes = 600};

/* What must be the same however the input came. */
struct told {
    enum codec_event event;
    size_t end; /* where in the input it ends */
    enum message_kind kind;
    struct facts facts;
    uint64_t id;
    uint32_t status, timeout_ms, field_count;
    bool succeeded, service_failed, last;
    const char *problem;
};

static inline bool same_told(const struct told *one, const struct told *other)
{
    return one->event == other->event && one->end == other->end && one->kind == other->kind &&
           memcmp(&one->facts, &other->facts, sizeof one->facts) == 0 && one->id == other->id &&
           one->status == other->status && one->timeout_ms == other->timeout_ms &&
           one->field_count == other->field_count && one->succeeded == other->succeeded &&
           one->service_failed == other->service_failed && one->last == other->last &&
           one->problem == other->problem;
}

static inline void check_text(struct text text, const uint8_t *data, size_t size)
{
    const uint8_t *at = (const uint8_t *)text.at;

    CHECK(text.size == 0 || (at >= data && at + text.size <= data + size));
}

static inline void check_message(const struct message *message, const uint8_t *data, size_t size)
{
    CHECK(message->field_count <= MAX_FIELDS);
    check_text(message->service, data, size);
    check_text(message->method, data, size);
    check_text(message->group, data, size);
    check_text(message->version, data, size);
    for (uint32_t i = 0; i < message->field_count; i++) {
        check_text(message->fields[i].name, data, size);
        check_text(message->fields[i].value, data, size);
    }
    CHECK(message->frame.at == (const char *)data && message->frame.size <= size);
}

/* All events of a connection, of which so many bytes come at a time. `each` is shown the messages.
 */
static inline size_t decode_all(const struct codec *codec, bool response, const uint8_t *data,
                                size_t size, size_t step, struct told *told,
                                void (*each)(const struct message *message))
{
    struct decoder decoder = {.limits = &frame_limits, .response = response};
    size_t from = 0, to = 0, count = 0, wanted = 0;

    while (count < MAX_FRAMES) {
        struct message message;
        size_t consumed, have = to - from;
        uint8_t *copy = malloc(have + !have); /* so that reading beyond is seen */
        enum codec_event event;

        memcpy(copy, data + from, have);
        event = codec->decode(&decoder, copy, have, &consumed, &message);
        CHECK(event == CODEC_MORE || event == CODEC_HEAD || event == CODEC_ERROR);
        CHECK(event == CODEC_HEAD ? consumed > 0 && consumed <= have : consumed == 0);
        CHECK(event != CODEC_HEAD || have >= wanted);
        if (event == CODEC_HEAD) {
            check_message(&message, copy, have);
            CHECK(message.frame.size == consumed && consumed <= frame_limits.frame_bytes);
            each(&message);
        }
        CHECK((event == CODEC_ERROR) == (message.problem != NULL));
        wanted = event == CODEC_MORE ? message.wanted : 0;
        if (event == CODEC_MORE) {
            CHECK(have == 0 || (wanted > have && wanted <= frame_limits.frame_bytes + 24));
            CHECK(codec->finish(&decoder, &message) == (have > 0 ? CODEC_ERROR : CODEC_MORE));
        } else {
            told[count++] = (struct told){event,
                                          from + consumed,
                                          message.kind,
                                          message.facts,
                                          message.id,
                                          message.status,
                                          message.timeout_ms,
                                          message.field_count,
                                          message.succeeded,
                                          message.service_failed,
                                          message.last,
                                          message.problem};
        }
        free(copy);
        from += consumed;
        if (event == CODEC_ERROR || (event == CODEC_MORE && to == size))
            break;
        if (event == CODEC_MORE)
            to = size - to < step ? size : to + step;
    }
    return count;
}

static inline void ignore(const struct message *message)
{
    (void)message;
}

static inline void check_splits(const struct codec *codec, bool response, const uint8_t *data,
                                size_t size, size_t step,
                                void (*each)(const struct message *message))
{
    static struct told whole[MAX_FRAMES], cut[MAX_FRAMES];
    size_t count = decode_all(codec, response, data, size, size + !size, whole, each);

    CHECK(decode_all(codec, response, data, size, step, cut, ignore) == count);
    for (size_t i = 0; i < count; i++)
        CHECK(same_told(&whole[i], &cut[i]));
    if (size > 0 && codec->detect(data, size) == DETECT_NO && !response)
        CHECK(count == 0 || whole[0].event == CODEC_ERROR ||
              whole[0].kind == MESSAGE_HEARTBEAT_ANSWER);
}

/* Decodes what our own side has written: it must be one frame in order. */
static inline void decode_own(const struct codec *codec, bool response, const uint8_t *data,
                              size_t size, struct message *message)
{
    static const struct limits none = {.frame_bytes = UINT32_MAX};
    struct decoder decoder = {.limits = &none, .response = response};
    size_t consumed;

    CHECK(codec->decode(&decoder, data, size, &consumed, message) == CODEC_HEAD);
    CHECK(consumed == size);
}

#endif
