/* CRC-32 as of Ethernet and zlib: what ends a frame of Bolt v2. */
#ifndef PYSIDECAR_L7_CHECKSUM_H
#define PYSIDECAR_L7_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

uint32_t crc32_of(const uint8_t *data, size_t size);

#endif
