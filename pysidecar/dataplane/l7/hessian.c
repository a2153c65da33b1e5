#include "l7/hessian.h"

#include "l7/bytes.h"

#define EACH_BYTE UINT64_C(0x0101010101010101)

void hessian_begin(struct hessian *hessian, const uint8_t *data, size_t size)
{
    hessian->at = data;
    hessian->end = data + size;
    hessian->class_count = 0;
    hessian->skipped = 0;
}

static bool skip_bytes(struct hessian *hessian, size_t count)
{
    if (count > (size_t)(hessian->end - hessian->at))
        return false;
    hessian->at += count;
    return true;
}

static bool next(struct hessian *hessian, uint8_t *byte)
{
    if (hessian->at == hessian->end)
        return false;
    *byte = *hessian->at++;
    return true;
}

static bool next_u16(struct hessian *hessian, uint32_t *value)
{
    if (!skip_bytes(hessian, 2))
        return false;
    *value = read_u16(hessian->at - 2);
    return true;
}

/* ---- numbers ---- */

/* Of these tags, each with as many bytes: the middle one stands for zero. */
static bool compact(struct hessian *hessian, uint8_t tag, uint8_t zero, size_t bytes,
                    int64_t *number)
{
    const uint8_t *at = hessian->at;

    *number = tag - zero;
    if (!skip_bytes(hessian, bytes))
        return false;
    for (; at < hessian->at; at++)
        *number = *number * 256 + *at;
    return true;
}

static bool int_value(struct hessian *hessian, uint8_t tag, int64_t *number)
{
    switch (tag) {
    case 0x80 ... 0xbf:
        return compact(hessian, tag, 0x90, 0, number);
    case 0xc0 ... 0xcf:
        return compact(hessian, tag, 0xc8, 1, number);
    case 0xd0 ... 0xd7:
        return compact(hessian, tag, 0xd4, 2, number);
    case 'I':
        if (!skip_bytes(hessian, 4))
            return false;
        *number = (int32_t)read_u32(hessian->at - 4);
        return true;
    default:
        return false;
    }
}

static bool long_value(struct hessian *hessian, uint8_t tag, int64_t *number)
{
    switch (tag) {
    case 0xd8 ... 0xef:
        return compact(hessian, tag, 0xe0, 0, number);
    case 0xf0 ... 0xff:
        return compact(hessian, tag, 0xf8, 1, number);
    case 0x38 ... 0x3f:
        return compact(hessian, tag, 0x3c, 2, number);
    case 0x59:
        return int_value(hessian, 'I', number);
    case 'L':
        if (!skip_bytes(hessian, 8))
            return false;
        *number = (int64_t)read_u64(hessian->at - 8);
        return true;
    default:
        return false;
    }
}

bool hessian_number(struct hessian *hessian, int64_t *number)
{
    uint8_t tag;

    return next(hessian, &tag) &&
           (int_value(hessian, tag, number) || long_value(hessian, tag, number));
}

/* How many values follow: each takes a byte at least. */
static bool count(struct hessian *hessian, uint32_t *counted)
{
    uint8_t tag;
    int64_t number;

    if (!next(hessian, &tag) || !int_value(hessian, tag, &number) || number < 0 ||
        number > hessian->end - hessian->at)
        return false;
    *counted = (uint32_t)number;
    return true;
}

/* ---- strings and binary data ---- */

enum { NOT_ASCII = 0x80 };

/* One character, of up to two UTF-16 units (in UTF-8 proper; Java writes surrogates). Returns how
 * many; 0: none. */
static uint32_t skip_character(struct hessian *hessian)
{
    const uint8_t *at = hessian->at;
    uint8_t first = at < hessian->end ? *at : NOT_ASCII;
    size_t more = first < 0x80 ? 0 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : 3;

    if ((first >= 0x80 && first < 0xc0) || first >= 0xf8 || !skip_bytes(hessian, 1 + more))
        return 0;
    while (++at < hessian->at)
        if ((*at & 0xc0) != 0x80)
            return 0;
    return more == 3 ? 2 : 1;
}

static bool are_ascii(const uint8_t *at, size_t words)
{
    uint64_t word, all = 0;

    for (size_t i = 0; i < words; i++) {
        memcpy(&word, at + sizeof word * i, sizeof word);
        all |= word;
    }
    return (all & NOT_ASCII * EACH_BYTE) == 0;
}

/* How many of the next characters are ASCII, as far as one look tells. */
static uint32_t ascii_count(const struct hessian *hessian, uint32_t units)
{
    size_t left = (size_t)(hessian->end - hessian->at);
    uint64_t word;

    if (units >= 32 && left >= 32 && are_ascii(hessian->at, 4))
        return 32;
    if (left < sizeof word)
        return 0;
    if (units > sizeof word)
        units = sizeof word;
    memcpy(&word, hessian->at, sizeof word);
    word = le64toh(word) << 8 * (sizeof word - units); /* so many of them matter */
    return (word & NOT_ASCII * EACH_BYTE) == 0 ? units : 0;
}

static bool skip_units(struct hessian *hessian, uint32_t units)
{
    while (units > 0) {
        uint32_t skipped = ascii_count(hessian, units);

        hessian->at += skipped;
        if (skipped == 0)
            skipped = skip_character(hessian);
        if (skipped == 0 || skipped > units)
            return false;
        units -= skipped;
    }
    return true;
}

/* The length of a string's chunk by its tag. False: it is no string. */
static bool string_chunk(struct hessian *hessian, uint8_t tag, uint32_t *units)
{
    uint8_t low;

    switch (tag) {
    case 0x00 ... 0x1f:
        *units = tag;
        return true;
    case 0x30 ... 0x33:
        if (!next(hessian, &low))
            return false;
        *units = (uint32_t)(tag - 0x30) << 8 | low;
        return true;
    case 'R': /* others follow */
    case 'S':
        return next_u16(hessian, units);
    default:
        return false;
    }
}

static bool binary_chunk(struct hessian *hessian, uint8_t tag, uint32_t *size)
{
    uint8_t low;

    switch (tag) {
    case 0x20 ... 0x2f:
        *size = tag - 0x20u;
        return true;
    case 0x34 ... 0x37:
        if (!next(hessian, &low))
            return false;
        *size = (uint32_t)(tag - 0x34) << 8 | low;
        return true;
    case 'A': /* others follow */
    case 'B':
        return next_u16(hessian, size);
    default:
        return false;
    }
}

static bool skip_string(struct hessian *hessian, uint8_t tag)
{
    uint32_t units;

    while (string_chunk(hessian, tag, &units) && skip_units(hessian, units)) {
        if (tag != 'R')
            return true;
        if (!next(hessian, &tag))
            return false;
    }
    return false;
}

static bool skip_binary(struct hessian *hessian, uint8_t tag)
{
    uint32_t size;

    while (binary_chunk(hessian, tag, &size) && skip_bytes(hessian, size)) {
        if (tag != 'A')
            return true;
        if (!next(hessian, &tag))
            return false;
    }
    return false;
}

bool hessian_string(struct hessian *hessian, struct text *text)
{
    uint8_t tag;
    uint32_t units;

    *text = (struct text){NULL, 0};
    if (!next(hessian, &tag))
        return false;
    if (tag == 'N')
        return true;
    if (tag == 'R' || !string_chunk(hessian, tag, &units))
        return false;
    text->at = (const char *)hessian->at;
    if (!skip_units(hessian, units))
        return false;
    text->size = (uint32_t)((const char *)hessian->at - text->at);
    return true;
}

/* ---- values within others ---- */

/* How many values are still to come in a list, a map or an object; from here on: until 'Z'. */
enum {
    LIST_ITEM = UINT32_MAX,
    MAP_KEY = UINT32_MAX - 1,
    MAP_VALUE = UINT32_MAX - 2,
};

/* The name of a class, or the number of one that was named before. */
static bool skip_type(struct hessian *hessian)
{
    uint8_t tag;
    int64_t number;

    return next(hessian, &tag) && (skip_string(hessian, tag) || int_value(hessian, tag, &number));
}

static bool define_class(struct hessian *hessian)
{
    uint8_t tag;
    uint32_t fields;

    if (hessian->class_count == HESSIAN_CLASSES || !next(hessian, &tag) ||
        !skip_string(hessian, tag) || !count(hessian, &fields))
        return false;
    for (uint32_t i = 0; i < fields; i++)
        if (!next(hessian, &tag) || !skip_string(hessian, tag))
            return false;
    hessian->class_fields[hessian->class_count++] = fields;
    return true;
}

static bool instance(const struct hessian *hessian, int64_t number, uint32_t *inner)
{
    if (number < 0 || number >= hessian->class_count)
        return false;
    *inner = hessian->class_fields[number];
    return *inner <= (size_t)(hessian->end - hessian->at);
}

/* A value that holds others, behind its tag: how many, or until when. */
static bool open_value(struct hessian *hessian, uint8_t tag, uint32_t *inner)
{
    uint8_t next_tag;
    int64_t number;

    switch (tag) {
    case 0x55: /* a typed list */
        *inner = LIST_ITEM;
        return skip_type(hessian);
    case 'V': /* with its length */
        return skip_type(hessian) && count(hessian, inner);
    case 0x57: /* untyped */
        *inner = LIST_ITEM;
        return true;
    case 0x58:
        return count(hessian, inner);
    case 0x70 ... 0x77:
        *inner = tag - 0x70u;
        return skip_type(hessian);
    case 0x78 ... 0x7f:
        *inner = tag - 0x78u;
        return true;
    case 'H':
        *inner = MAP_KEY;
        return true;
    case 'M':
        *inner = MAP_KEY;
        return skip_type(hessian);
    case 'O':
        return next(hessian, &next_tag) && int_value(hessian, next_tag, &number) &&
               instance(hessian, number, inner);
    case 0x60 ... 0x6f:
        return instance(hessian, tag - 0x60, inner);
    default:
        return false;
    }
}

/* A value behind its tag, but for those within it. */
static bool skip_shallow(struct hessian *hessian, uint8_t tag, uint32_t *inner)
{
    int64_t number;

    *inner = 0;
    switch (tag) {
    case 'N':
    case 'T':
    case 'F':
    case 0x5b: /* 0.0 */
    case 0x5c: /* 1.0 */
        return true;
    case 0x5d: /* doubles, of 1, 2, 4 and 8 bytes */
        return skip_bytes(hessian, 1);
    case 0x5e:
        return skip_bytes(hessian, 2);
    case 0x5f:
    case 0x4b: /* a date in minutes */
        return skip_bytes(hessian, 4);
    case 'D':
    case 0x4a: /* a date in milliseconds */
        return skip_bytes(hessian, 8);
    case 0x51: /* a value that was there before */
        return next(hessian, &tag) && int_value(hessian, tag, &number);
    case 0x00 ... 0x1f:
    case 0x30 ... 0x33:
    case 'R':
    case 'S':
        return skip_string(hessian, tag);
    case 0x20 ... 0x2f:
    case 0x34 ... 0x37:
    case 'A':
    case 'B':
        return skip_binary(hessian, tag);
    case 0x80 ... 0xd7:
    case 'I':
        return int_value(hessian, tag, &number);
    case 0xd8 ... 0xff:
    case 0x38 ... 0x3f:
    case 0x59:
    case 'L':
        return long_value(hessian, tag, &number);
    default:
        return open_value(hessian, tag, inner);
    }
}

/* The tag of the next value, behind the definitions of classes that stand before it. */
static bool next_value(struct hessian *hessian, uint8_t *tag)
{
    if (!next(hessian, tag))
        return false;
    if (*tag != 'C')
        return true;
    do
        if (!define_class(hessian) || !next(hessian, tag))
            return false;
    while (*tag == 'C');
    return *tag != 'Z'; /* they stand before a value */
}

/* One value less is to come. False: 'Z' instead of it, where none may be. */
static bool take_turn(uint32_t *left, uint8_t tag)
{
    bool ends = tag == 'Z' && (*left == LIST_ITEM || *left == MAP_KEY);

    if (ends)
        *left = 0;
    else if (*left == MAP_KEY)
        *left = MAP_VALUE;
    else if (*left == MAP_VALUE)
        *left = MAP_KEY;
    else if (*left != LIST_ITEM)
        --*left;
    return ends || tag != 'Z';
}

bool hessian_skip(struct hessian *hessian)
{
    uint32_t around[HESSIAN_DEPTH], left = 1, depth = 0;

    for (;;) {
        uint32_t inner;
        uint8_t tag;

        while (left == 0) {
            if (depth == 0)
                return true;
            left = around[--depth];
        }
        if (hessian->skipped++ == HESSIAN_VALUES || !next_value(hessian, &tag) ||
            !take_turn(&left, tag))
            return false;
        if (tag == 'Z')
            continue;
        if (!skip_shallow(hessian, tag, &inner))
            return false;
        if (inner == 0)
            continue;
        if (left > 0) { /* else nothing is to be gone back to: a long linked list is no deep one */
            if (depth == HESSIAN_DEPTH)
                return false;
            around[depth++] = left;
        }
        left = inner;
    }
}

bool hessian_enter_map(struct hessian *hessian)
{
    uint8_t tag;

    return next(hessian, &tag) && (tag == 'H' || (tag == 'M' && skip_type(hessian)));
}

bool hessian_leave(struct hessian *hessian)
{
    if (hessian->at == hessian->end || *hessian->at != 'Z')
        return false;
    hessian->at++;
    return true;
}
