/* The parser of PROXY v2 headers, against one that is written straight from the specification
 * (haproxy's proxy-protocol.txt, section 2.2) and from what contract.h says of our TLVs.
 *
 * An input is what has come so far, however little. */
#include "../../pysidecar/dataplane/intercept/header.c"

#include "fuzz.h"

enum verdict { COMPLETE, INCOMPLETE, MALFORMED, NO_ADDRESS };

struct expected {
    enum verdict verdict;
    size_t size;
    uint8_t destination[16];
    unsigned destination_port, scope_id;
    uint32_t pid;
    char command[MOSNHOOK_COMMAND_SIZE];
};

static uint32_t big_endian(const uint8_t *bytes, int count)
{
    uint32_t value = 0;

    for (int i = 0; i < count; i++)
        value = value * 256 + bytes[i];
    return value;
}

/* "The receiver must be ready to skip and ignore" TLVs that it does not know. */
static int read_tlv(struct expected *to, const uint8_t *tlv, unsigned left)
{
    unsigned length;

    if (left < 3)
        return -1;
    length = big_endian(tlv + 1, 2);
    if (3 + length > left)
        return -1;
    switch (tlv[0]) {
    case 0xE0:
        to->pid = length == 4 ? big_endian(tlv + 3, 4) : to->pid;
        break;
    case 0xE2:
        for (unsigned i = 0; length <= 16 && i < length; i++)
            to->command[i] = (char)tlv[3 + i];
        break;
    case 0xE3:
        to->scope_id = length == 4 ? big_endian(tlv + 3, 4) : to->scope_id;
        break;
    }
    return (int)(3 + length);
}

static void read_addresses(struct expected *to, const uint8_t *block, int v6)
{
    static const uint8_t v4_mapped[16] = {[10] = 0xff, [11] = 0xff};

    memcpy(to->destination, v4_mapped, 16);
    memcpy(v6 ? to->destination : to->destination + 12, block + (v6 ? 16 : 4), v6 ? 16 : 4);
    to->destination_port = big_endian(block + (v6 ? 34 : 10), 2);
}

static int goes_nowhere(const struct expected *header)
{
    static const uint8_t any_v6[16], any_v4[16] = {[10] = 0xff, [11] = 0xff};

    return memcmp(header->destination, any_v6, 16) == 0 ||
           memcmp(header->destination, any_v4, 16) == 0;
}

static struct expected expect(const uint8_t *bytes, size_t count)
{
    static const uint8_t magic[12] = {0x0D, 0x0A, 0x0D, 0x0A, 0,   0x0D,
                                      0x0A, 'Q',  'U',  'I',  'T', 0x0A};
    struct expected to = {.verdict = MALFORMED};
    unsigned body, addresses;

    for (size_t i = 0; i < count && i < 12; i++)
        if (bytes[i] != magic[i])
            return to;
    if (count >= 13 && (bytes[12] >> 4 != 2 || (bytes[12] & 15) > 1))
        return to;
    to.verdict = INCOMPLETE;
    if (count < 16)
        return to;
    body = big_endian(bytes + 14, 2);
    to.verdict = 16 + body > 4096 ? MALFORMED : 16 + body > count ? INCOMPLETE : NO_ADDRESS;
    if (to.verdict != NO_ADDRESS || (bytes[12] & 15) == 0 ||
        (bytes[13] != 0x11 && bytes[13] != 0x21))
        return to;
    to.verdict = MALFORMED;
    addresses = bytes[13] == 0x21 ? 36 : 12;
    if (body < addresses)
        return to;
    read_addresses(&to, bytes + 16, bytes[13] == 0x21);
    for (unsigned at = addresses; at < body;) {
        int size = read_tlv(&to, bytes + 16 + at, body - at);

        if (size < 0)
            return to;
        at += (unsigned)size;
    }
    if (goes_nowhere(&to))
        return to;
    to.verdict = COMPLETE;
    to.size = 16 + body;
    return to;
}

static enum verdict verdict_of(const struct header *header)
{
    switch (header->end) {
    case DP_END_NONE:
        return header->size > 0 ? COMPLETE : INCOMPLETE;
    case DP_END_HEADER_NO_ADDRESS:
        return NO_ADDRESS;
    default:
        CHECK(header->end == DP_END_HEADER_MALFORMED);
        return MALFORMED;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct expected expected = expect(data, size);
    struct header header;

    header_parse(&header, data, size);
    CHECK(verdict_of(&header) == expected.verdict);
    if (expected.verdict != COMPLETE)
        return 0;
    CHECK(header.size == expected.size);
    CHECK(memcmp(header.destination.ip, expected.destination, 16) == 0);
    CHECK(header.destination.port == expected.destination_port);
    CHECK(header.destination.scope_id == expected.scope_id);
    CHECK(header.pid == expected.pid);
    CHECK(memcmp(header.command, expected.command, sizeof header.command) == 0);
    return 0;
}
