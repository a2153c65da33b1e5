#include "api/json.h"

#include <math.h>

char *json_number(char *at, uint64_t number)
{
    char digits[20];
    size_t count = 0;

    do
        digits[count++] = (char)('0' + number % 10);
    while (number /= 10);
    while (count > 0)
        *at++ = digits[--count];
    return at;
}

/* With leading zeros. */
static char *put_digits(char *at, unsigned number, int digits)
{
    for (int i = digits - 1; i >= 0; i--, number /= 10)
        at[i] = (char)('0' + number % 10);
    return at + digits;
}

static char *put_hex(char *at, unsigned number, int digits)
{
    for (int i = digits - 1; i >= 0; i--, number /= 16)
        at[i] = "0123456789abcdef"[number % 16];
    return at + digits;
}

char *json_known(char *at, const char *key, uint64_t number, bool known)
{
    at = json_put(at, key);
    return known ? json_number(at, number) : json_put(at, "null");
}

/* As Python writes a float: at least one digit after the point, and no trailing zeros. */
char *json_thousandths(char *at, uint64_t number)
{
    at = json_number(at, number / 1000);
    *at++ = '.';
    at = put_digits(at, (unsigned)(number % 1000), 3);
    for (int i = 0; i < 2 && at[-1] == '0'; i++)
        at--;
    return at;
}

char *json_name(char *at, const char *key, const char *name)
{
    at = json_put(json_put(json_put(at, key), "\""), name);
    *at++ = '"';
    return at;
}

/* ---- when ---- */

/* Milliseconds since 1970, truncated, as Python has them: from a float of seconds, rounded to
 * microseconds, half to even. */
static uint64_t milliseconds(uint64_t ns)
{
    double time = (double)ns / 1e9;
    uint64_t seconds = (uint64_t)time;
    double micros = (time - (double)seconds) * 1e6;
    uint64_t whole = (uint64_t)micros;
    double rest = micros - (double)whole;

    if (rest > 0.5 || (rest == 0.5 && whole % 2 == 1))
        whole++;
    return seconds * 1000 + whole / 1000;
}

/* The date of a day since 1970. Counts years from March, so that the leap day is the last one. */
static char *put_date(char *at, uint64_t days)
{
    uint64_t shifted = days + 719468, era = shifted / 146097; /* since March of the year 0 */
    unsigned day = (unsigned)(shifted % 146097);
    unsigned year = (day - day / 1460 + day / 36524 - day / 146096) / 365; /* of the era */
    unsigned month;

    day -= 365 * year + year / 4 - year / 100;
    month = (5 * day + 2) / 153; /* 0: March */
    at = put_digits(at, (unsigned)(era * 400) + year + (month >= 10), 4);
    *at++ = '-';
    at = put_digits(at, month < 10 ? month + 3 : month - 9, 2);
    *at++ = '-';
    return put_digits(at, day - (153 * month + 2) / 5 + 1, 2);
}

char *json_time(char *at, uint64_t ns)
{
    uint64_t ms = milliseconds(ns), seconds = ms / 1000;
    unsigned of_day = (unsigned)(seconds % 86400);

    at = put_date(at, seconds / 86400);
    *at++ = 'T';
    at = put_digits(at, of_day / 3600, 2);
    *at++ = ':';
    at = put_digits(at, of_day / 60 % 60, 2);
    *at++ = ':';
    at = put_digits(at, of_day % 60, 2);
    *at++ = '.';
    at = put_digits(at, (unsigned)(ms % 1000), 3);
    *at++ = 'Z';
    return at;
}

/* As Python rounds a float of milliseconds to three digits, half to even: with the nanoseconds
 * right in the middle, it depends on which side of it the float is. */
static uint64_t microseconds(uint64_t ns)
{
    double off;

    if (ns % 1000 != 500)
        return ns / 1000 + (ns % 1000 > 500);
    off = fma((double)ns / 1e6, 1e6, -(double)ns);
    return ns / 1000 + (off > 0 || (off == 0 && ns / 1000 % 2 == 1));
}

char *json_milliseconds(char *at, uint64_t ns)
{
    return json_thousandths(at, microseconds(ns));
}

/* ---- where ---- */

static char *put_ipv4(char *at, const uint8_t *ip)
{
    for (int i = 0; i < 4; i++) {
        if (i > 0)
            *at++ = '.';
        at = json_number(at, ip[i]);
    }
    return at;
}

/* Finds the first of the longest runs of more than one zero group. Returns its length. */
static int longest_zeros(const unsigned *groups, int *start)
{
    int longest = 1;

    for (int i = 0, run = 0; i < 8; i++) {
        run = groups[i] == 0 ? run + 1 : 0;
        if (run > longest) {
            longest = run;
            *start = i - run + 1;
        }
    }
    return longest > 1 ? longest : 0;
}

/* By RFC 5952, never with the dotted quad at the end that inet_ntop() makes of some. */
static char *put_ipv6(char *at, const uint8_t *ip)
{
    unsigned groups[8];
    int start = 8, zeros;

    for (int i = 0; i < 8; i++)
        groups[i] = (unsigned)ip[2 * i] << 8 | ip[2 * i + 1];
    zeros = longest_zeros(groups, &start);
    for (int i = 0; i < 8; i++) {
        if (i == start) {
            at = json_put(at, "::");
            i += zeros - 1;
            continue;
        }
        if (i > 0 && i != start + zeros)
            *at++ = ':';
        at = put_hex(at, groups[i],
                     groups[i] > 0xfff  ? 4
                     : groups[i] > 0xff ? 3
                     : groups[i] > 0xf  ? 2
                                        : 1);
    }
    return at;
}

static char *put_host(char *at, const struct mosnhook_address *address)
{
    static const uint8_t v4_mapped[12] = {[10] = 0xff, [11] = 0xff};

    if (memcmp(address->ip, v4_mapped, sizeof v4_mapped) == 0)
        return put_ipv4(at, address->ip + sizeof v4_mapped);
    *at++ = '[';
    at = put_ipv6(at, address->ip);
    if (address->scope_id) {
        *at++ = '%';
        at = json_number(at, address->scope_id);
    }
    *at++ = ']';
    return at;
}

char *json_address(char *at, const char *key, const struct mosnhook_address *address)
{
    static const uint8_t none[16];

    at = json_put(at, key);
    if (address->port == 0 && memcmp(address->ip, none, sizeof none) == 0)
        return json_put(at, "null");
    *at++ = '"';
    at = put_host(at, address);
    *at++ = ':';
    at = json_number(at, address->port);
    *at++ = '"';
    return at;
}

char *json_digits(char *at, const char *key, const uint8_t *bytes, size_t size)
{
    uint8_t any = 0;

    for (size_t i = 0; i < size; i++)
        any |= bytes[i];
    if (!any)
        return at;
    at = json_put(json_put(at, key), "\"");
    for (size_t i = 0; i < size; i++)
        at = put_hex(at, bytes[i], 2);
    return json_put(at, "\"");
}

/* ---- what others wrote ---- */

/* The length of the UTF-8 sequence at `text`, and its code point. 0 if it is none. */
static size_t decode(const uint8_t *text, size_t left, uint32_t *code)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000}; /* by length */
    size_t length = text[0] < 0x80         ? 1
                    : text[0] >> 5 == 0x06 ? 2
                    : text[0] >> 4 == 0x0e ? 3
                    : text[0] >> 3 == 0x1e ? 4
                                           : 0;

    if (length == 0 || length > left)
        return 0;
    *code = length == 1 ? text[0] : text[0] & 0x7fu >> length;
    for (size_t i = 1; i < length; i++) {
        if (text[i] >> 6 != 2)
            return 0;
        *code = *code << 6 | (text[i] & 0x3fu);
    }
    if (*code < least[length] || *code > 0x10ffff || *code >> 11 == 0xd800 >> 11)
        return 0;
    return length;
}

static char *put_unit(char *at, uint32_t unit)
{
    return put_hex(json_put(at, "\\u"), unit, 4);
}

/* In ASCII: controls and changes of the direction of writing reach no terminal. */
static char *put_escaped(char *at, uint32_t code)
{
    static const char plain[] = "\"\\\b\f\n\r\t", escaped[] = "\"\\bfnrt";
    const char *found = code > 0 && code < 0x80 ? strchr(plain, (int)code) : NULL;

    if (found) {
        *at++ = '\\';
        *at++ = escaped[found - plain];
        return at;
    }
    if (code >= 0x20 && code < 0x7f) {
        *at++ = (char)code;
        return at;
    }
    if (code < 0x10000)
        return put_unit(at, code);
    code -= 0x10000;
    return put_unit(put_unit(at, 0xd800 | code >> 10), 0xdc00 | (code & 0x3ff));
}

/* ASCII that stands for itself. */
static bool is_plain(uint8_t byte)
{
    return byte >= ' ' && byte < 0x7f && byte != '"' && byte != '\\';
}

/* What is no UTF-8 becomes the text \xNN. */
char *json_text(char *at, const char *key, const char *text, size_t size)
{
    at = json_put(at, key);
    if (size == 0)
        return json_put(at, "null");
    *at++ = '"';
    for (size_t i = 0, length; i < size; i += length) {
        uint32_t code;

        length = 1;
        if (is_plain((uint8_t)text[i])) {
            *at++ = text[i];
            continue;
        }
        length = decode((const uint8_t *)text + i, size - i, &code);
        if (length > 0) {
            at = put_escaped(at, code);
            continue;
        }
        length = 1;
        at = put_hex(json_put(at, "\\\\x"), (uint8_t)text[i], 2);
    }
    *at++ = '"';
    return at;
}
