/* Numbers of Bolt and Dubbo, big-endian, and bytes that are put one behind the other. */
#ifndef PYSIDECAR_L7_BYTES_H
#define PYSIDECAR_L7_BYTES_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint16_t read_u16(const void *at)
{
    uint16_t value;

    memcpy(&value, at, sizeof value);
    return be16toh(value);
}

static inline uint32_t read_u32(const void *at)
{
    uint32_t value;

    memcpy(&value, at, sizeof value);
    return be32toh(value);
}

static inline uint64_t read_u64(const void *at)
{
    uint64_t value;

    memcpy(&value, at, sizeof value);
    return be64toh(value);
}

static inline void write_u16(void *to, uint16_t value)
{
    value = htobe16(value);
    memcpy(to, &value, sizeof value);
}

static inline void write_u32(void *to, uint32_t value)
{
    value = htobe32(value);
    memcpy(to, &value, sizeof value);
}

static inline void write_u64(void *to, uint64_t value)
{
    value = htobe64(value);
    memcpy(to, &value, sizeof value);
}

/* What is written to a place of limited size. */
struct output {
    uint8_t *begin, *at, *end;
    bool full; /* something did not fit: what is there is worth nothing */
};

static inline struct output output_to(uint8_t *to, size_t room)
{
    return (struct output){to, to, to + room, false};
}

static inline void put(struct output *output, const void *data, size_t size)
{
    if (size > (size_t)(output->end - output->at)) {
        output->full = true;
        return;
    }
    if (size > 0)
        memcpy(output->at, data, size);
    output->at += size;
}

static inline void put_u8(struct output *output, uint8_t value)
{
    put(output, &value, sizeof value);
}

static inline void put_u16(struct output *output, uint16_t value)
{
    value = htobe16(value);
    put(output, &value, sizeof value);
}

static inline void put_u32(struct output *output, uint32_t value)
{
    value = htobe32(value);
    put(output, &value, sizeof value);
}

static inline void put_u64(struct output *output, uint64_t value)
{
    value = htobe64(value);
    put(output, &value, sizeof value);
}

static inline size_t output_size(const struct output *output)
{
    return output->full ? 0 : (size_t)(output->at - output->begin);
}

#endif
