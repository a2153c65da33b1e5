/* Bodies of requests and answers. Each begins and ends with the nonce of its request, so that an
 * answer that is another's is found, and one that was put together of two. Between is text that
 * repeats late, so that a piece that is missing or twice there is found, too. */
#include "load.h"

#include <string.h>

enum { SAMPLE = 64 };

static char text[CHUNK];

static const char *text_at(uint64_t offset)
{
    uint32_t random = 1;

    if (text[0] == 0) {
        for (size_t i = 0; i < sizeof(text); i++) {
            random = random * 1664525 + 1013904223;
            text[i] = (char)('a' + (random >> 16) % 26);
        }
    }
    return text + offset % sizeof(text);
}

void nonce_write(char *to, uint64_t nonce)
{
    for (int i = NONCE_SIZE - 1; i >= 0; i--) {
        to[i] = "0123456789abcdef"[nonce & 15];
        nonce >>= 4;
    }
}

void body_write(char *to, const char *nonce, size_t size)
{
    memcpy(to, text_at(0), size);
    memcpy(to, nonce, NONCE_SIZE);
    memcpy(to + size - NONCE_SIZE, nonce, NONCE_SIZE);
}

/* Until where the text goes on in the memory that it is in, from an offset. */
static uint64_t text_end(uint64_t size, uint64_t offset)
{
    uint64_t end = size - NONCE_SIZE, turn = offset - offset % CHUNK + CHUNK;

    return end < turn ? end : turn;
}

const char *body_next(const struct body *body, size_t *size)
{
    uint64_t offset = body->offset, last = body->size - NONCE_SIZE;

    if (offset < NONCE_SIZE) {
        *size = NONCE_SIZE - offset;
        return body->nonce + offset;
    }
    if (offset >= last) {
        *size = body->size - offset;
        return body->nonce + (offset - last);
    }
    *size = text_end(body->size, offset) - offset;
    return text_at(offset);
}

bool body_take(struct body *body, const char *bytes, size_t size)
{
    if (size > body->size - body->offset) {
        return false;
    }
    while (size > 0) {
        size_t piece;
        const char *expected = body_next(body, &piece);

        piece = piece < size ? piece : size;
        if (memcmp(bytes, expected, body->size > PAYLOAD_MAX && piece > SAMPLE ? SAMPLE : piece) !=
            0) {
            return false;
        }
        body->offset += piece;
        bytes += piece;
        size -= piece;
    }
    return true;
}
