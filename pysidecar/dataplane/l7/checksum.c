#include "l7/checksum.h"

#include <endian.h>
#include <string.h>

enum { AT_ONCE = 8 };

/* What a byte contributes that 0, 1, ... 7 bytes follow ("slicing by 8"). */
static uint32_t contribution[AT_ONCE][256];

__attribute__((constructor)) static void fill_contributions(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t value = byte;

        for (int bit = 0; bit < 8; bit++)
            value = value >> 1 ^ (value & 1 ? 0xEDB88320 : 0);
        contribution[0][byte] = value;
    }
    for (int behind = 1; behind < AT_ONCE; behind++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t value = contribution[behind - 1][byte];

            contribution[behind][byte] = value >> 8 ^ contribution[0][value & 0xff];
        }
}

static uint32_t contribution_of(uint32_t word, int bytes_behind)
{
    return contribution[bytes_behind + 3][word & 0xff] ^
           contribution[bytes_behind + 2][word >> 8 & 0xff] ^
           contribution[bytes_behind + 1][word >> 16 & 0xff] ^
           contribution[bytes_behind][word >> 24];
}

uint32_t crc32_of(const uint8_t *data, size_t size)
{
    uint32_t crc = UINT32_MAX;

    for (; size >= AT_ONCE; data += AT_ONCE, size -= AT_ONCE) {
        uint32_t words[2];

        memcpy(words, data, sizeof words);
        crc = contribution_of(le32toh(words[0]) ^ crc, 4) ^ contribution_of(le32toh(words[1]), 0);
    }
    for (; size > 0; data++, size--)
        crc = crc >> 8 ^ contribution[0][(crc ^ *data) & 0xff];
    return ~crc;
}
