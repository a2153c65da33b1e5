/* Writes to a room that may turn out to be too small. */
#ifndef PYSIDECAR_L7_HTTP1_WRITE_H
#define PYSIDECAR_L7_HTTP1_WRITE_H

#include "base/text.h"

struct writer {
    char *at, *end;
    bool full; /* something did not fit; nothing more is written */
};

static inline struct writer writer_to(uint8_t *to, size_t room)
{
    return (struct writer){(char *)to, (char *)to + room, false};
}

/* How much was written; 0: not everything fitted. */
static inline size_t written(const struct writer *writer, const uint8_t *to)
{
    return writer->full ? 0 : (size_t)((const uint8_t *)writer->at - to);
}

static inline void put(struct writer *writer, struct text text)
{
    if (writer->full || (size_t)(writer->end - writer->at) < text.size) {
        writer->full = true;
        return;
    }
    if (text.size > 0)
        memcpy(writer->at, text.at, text.size);
    writer->at += text.size;
}

static inline void put_field(struct writer *writer, struct text name, struct text value)
{
    put(writer, name);
    put(writer, TEXT(": "));
    put(writer, value);
    put(writer, TEXT("\r\n"));
}

static inline void put_number(struct writer *writer, uint64_t number)
{
    char digits[20], *at = digits + sizeof digits;

    do
        *--at = (char)('0' + number % 10);
    while (number /= 10);
    put(writer, (struct text){at, (uint32_t)(digits + sizeof digits - at)});
}

#endif
