/* What the tests of the codecs of frames share: frames are put together here byte by byte, and
 * decoded however they are cut. */
#ifndef UNIT_FRAMES_H
#define UNIT_FRAMES_H

#include "unit.h"

#include <stdlib.h>
#include <string.h>

#include "l7/codec.h"

struct bytes {
    uint8_t data[200000];
    size_t size;
};

static inline struct bytes *no_bytes(void)
{
    struct bytes *bytes = malloc(sizeof *bytes);

    assert_non_null(bytes);
    bytes->size = 0;
    return bytes;
}

static inline void append(struct bytes *bytes, const void *data, size_t size)
{
    assert_in_range(bytes->size + size, 0, sizeof bytes->data);
    memcpy(bytes->data + bytes->size, data, size);
    bytes->size += size;
}

#define APPEND(bytes, constant) append((bytes), (constant), sizeof(constant) - 1)

static inline void append_number(struct bytes *bytes, uint64_t number, int size)
{
    while (size-- > 0) {
        uint8_t byte = (uint8_t)(number >> 8 * size);

        append(bytes, &byte, 1);
    }
}

static inline void assert_text(struct text text, const char *expected)
{
    assert_int_equal(text.size, strlen(expected));
    if (text.size > 0)
        assert_memory_equal(text.at, expected, text.size);
}

static const struct limits limits = {.frame_bytes = 150000};

static inline struct decoder decoder_of(bool response)
{
    return (struct decoder){.limits = &limits, .response = response};
}

/* So much of the bytes, in memory that ends there. */
static inline uint8_t *beginning(const struct bytes *bytes, size_t size)
{
    uint8_t *copy = malloc(size + !size);

    assert_non_null(copy);
    memcpy(copy, bytes->data, size);
    return copy;
}

/* The event of all the bytes, which are one frame at most. That of each beginning of it is
 * CODEC_MORE, with a sound `wanted`; or it is the same error. */
static inline enum codec_event decode_however_cut(const struct codec *codec, bool response,
                                                  const struct bytes *bytes,
                                                  struct message *message)
{
    struct decoder decoder = decoder_of(response), whole = decoder_of(response);
    size_t consumed, step = bytes->size > 1000 ? bytes->size / 50 : 1;
    enum codec_event event = codec->decode(&whole, bytes->data, bytes->size, &consumed, message);

    for (size_t size = 0; size < bytes->size; size += step) {
        uint8_t *copy = beginning(bytes, size);
        struct message partial;
        size_t none;

        if (codec->decode(&decoder, copy, size, &none, &partial) == CODEC_ERROR) {
            assert_int_equal(event, CODEC_ERROR);
            assert_string_equal(partial.problem, message->problem);
        } else {
            assert_true(partial.wanted == 0 || partial.wanted > size);
            assert_true(event != CODEC_HEAD || partial.wanted <= bytes->size);
            assert_int_equal(codec->finish(&decoder, &partial),
                             size > 0 ? CODEC_ERROR : CODEC_MORE);
        }
        assert_int_equal(none, 0);
        free(copy);
    }
    if (event == CODEC_HEAD) {
        assert_int_equal(consumed, bytes->size);
        assert_ptr_equal(message->frame.at, bytes->data);
        assert_int_equal(message->frame.size, bytes->size);
        assert_int_equal(codec->finish(&whole, &(struct message){0}), CODEC_MORE);
    } else {
        assert_int_equal(consumed, 0);
    }
    return event;
}

/* It is a request or an answer that is in order. */
static inline struct message decode_one(const struct codec *codec, bool response,
                                        const struct bytes *bytes)
{
    struct message message;

    assert_int_equal(decode_however_cut(codec, response, bytes, &message), CODEC_HEAD);
    return message;
}

static inline void assert_refused(const struct codec *codec, bool response,
                                  const struct bytes *bytes, const char *problem)
{
    struct message message;

    assert_int_equal(decode_however_cut(codec, response, bytes, &message), CODEC_ERROR);
    assert_string_equal(message.problem, problem);
}

/* What the codec makes of it; with a byte less room it makes nothing. */
static inline struct bytes *encode(const struct codec *codec, const struct message *message,
                                   const struct adjustment *adjustment)
{
    struct bytes *bytes = no_bytes();
    struct encoder encoder = {0};

    bytes->size = codec->encode(&encoder, message, adjustment, bytes->data, sizeof bytes->data);
    for (size_t room = 0; room<bytes->size; room += bytes->size> 1000 ? 77 : 1) {
        uint8_t *to = malloc(room + !room);

        assert_int_equal(codec->encode(&encoder, message, adjustment, to, room), 0);
        free(to);
    }
    return bytes;
}

#endif
