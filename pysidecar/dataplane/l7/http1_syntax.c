#include "l7/http1_syntax.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum { BLOCK = 16 };

/* What a byte may be part of. */
enum {
    IN_TOKEN = 1,
    IN_HOST = 2, /* a registered name, as far as names are used: RFC 3986's "unreserved" */
    IN_V6 = 4,
};

static const uint8_t classes[256] = {
    ['!'] = IN_TOKEN,
    ['#' ... '\''] = IN_TOKEN,
    ['*'] = IN_TOKEN,
    ['+'] = IN_TOKEN,
    ['-'] = IN_TOKEN | IN_HOST,
    ['.'] = IN_TOKEN | IN_HOST | IN_V6,
    ['0' ... '9'] = IN_TOKEN | IN_HOST | IN_V6,
    [':'] = IN_V6,
    ['A' ... 'F'] = IN_TOKEN | IN_HOST | IN_V6,
    ['G' ... 'Z'] = IN_TOKEN | IN_HOST,
    ['^'] = IN_TOKEN,
    ['_'] = IN_TOKEN | IN_HOST,
    ['`'] = IN_TOKEN,
    ['a' ... 'f'] = IN_TOKEN | IN_HOST | IN_V6,
    ['g' ... 'z'] = IN_TOKEN | IN_HOST,
    ['|'] = IN_TOKEN,
    ['~'] = IN_TOKEN | IN_HOST,
};

static const char *class_end(const char *at, const char *end, unsigned class)
{
    while (at < end && (classes[(uint8_t)*at] & class))
        at++;
    return at;
}

const char *http1_token_end(const char *at, const char *end)
{
    return class_end(at, end, IN_TOKEN);
}

static bool ends_value(char c)
{
    return ((uint8_t)c < ' ' && c != '\t') || c == 0x7f;
}

static bool ends_target(char c)
{
    return (int8_t)c <= ' ' || c == 0x7f || c == '#';
}

#ifdef __SSE2__

static unsigned value_ends(const char *block)
{
    __m128i bytes = _mm_loadu_si128((const __m128i *)block);
    __m128i control = _mm_cmpeq_epi8(_mm_min_epu8(bytes, _mm_set1_epi8(0x1f)), bytes);
    __m128i tab = _mm_cmpeq_epi8(bytes, _mm_set1_epi8('\t'));
    __m128i delete = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(0x7f));

    return (unsigned)_mm_movemask_epi8(_mm_or_si128(_mm_andnot_si128(tab, control), delete));
}

static unsigned target_ends(const char *block)
{
    __m128i bytes = _mm_loadu_si128((const __m128i *)block);
    __m128i fits = _mm_cmpgt_epi8(bytes, _mm_set1_epi8(' ')); /* as signed: no byte above 0x7f */
    __m128i delete = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(0x7f));
    __m128i hash = _mm_cmpeq_epi8(bytes, _mm_set1_epi8('#'));

    return (unsigned)_mm_movemask_epi8(_mm_or_si128(delete, hash)) |
           (~(unsigned)_mm_movemask_epi8(fits) & 0xffff);
}

const char *http1_value_end(const char *at, const char *end)
{
    for (; end - at >= BLOCK; at += BLOCK) {
        unsigned ends = value_ends(at);

        if (ends)
            return at + __builtin_ctz(ends);
    }
    while (at < end && !ends_value(*at))
        at++;
    return at;
}

const char *http1_target_end(const char *at, const char *end)
{
    for (; end - at >= BLOCK; at += BLOCK) {
        unsigned ends = target_ends(at);

        if (ends)
            return at + __builtin_ctz(ends);
    }
    while (at < end && !ends_target(*at))
        at++;
    return at;
}

#else

const char *http1_value_end(const char *at, const char *end)
{
    while (at < end && !ends_value(*at))
        at++;
    return at;
}

const char *http1_target_end(const char *at, const char *end)
{
    while (at < end && !ends_target(*at))
        at++;
    return at;
}

#endif

bool http1_is_token(struct text text)
{
    return text.size > 0 && http1_token_end(text.at, text.at + text.size) == text.at + text.size;
}

bool http1_is_value(struct text text)
{
    return text.size == 0 || http1_value_end(text.at, text.at + text.size) == text.at + text.size;
}

bool http1_number(struct text digits, uint64_t *number)
{
    uint64_t sum = 0;

    if (digits.size == 0)
        return false;
    for (uint32_t i = 0; i < digits.size; i++) {
        if (digits.at[i] < '0' || digits.at[i] > '9' || sum > (INT64_MAX - 9) / 10)
            return false;
        sum = sum * 10 + (uint64_t)(digits.at[i] - '0');
    }
    *number = sum;
    return true;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t';
}

bool http1_next_element(struct text *list, struct text *element)
{
    const char *at = list->at, *end = list->at + list->size, *from;

    while (at < end && (is_space(*at) || *at == ','))
        at++;
    from = at;
    while (at < end && *at != ',')
        at++;
    *list = text_between(at, end);
    while (at > from && is_space(at[-1]))
        at--;
    *element = text_between(from, at);
    return element->size > 0;
}

bool http1_lists(struct text list, struct text element)
{
    struct text one;

    while (http1_next_element(&list, &one))
        if (http1_is(one, element))
            return true;
    return false;
}

#define LETTER(letter) (1U << ((letter) - 'a' + 1))

const uint32_t http1_header_letters[HEADER_BYTES] = {
    [2] = LETTER('t'),
    [4] = LETTER('h'),
    [6] = LETTER('e'),
    [7] = LETTER('u') | LETTER('t'),
    [10] = LETTER('c') | LETTER('k'),
    [14] = LETTER('c') | LETTER('h'),
    [16] = LETTER('p'),
    [17] = LETTER('t'),
    [18] = LETTER('p'),
    [19] = LETTER('p'),
    [25] = LETTER('p'),
};

/* The headers by the size of their names: at most two each. */
static const struct {
    const char *name;
    enum header header;
} headers[HEADER_BYTES][2] = {
    [2] = {{"te", HEADER_TE}},
    [4] = {{"host", HEADER_HOST}},
    [6] = {{"expect", HEADER_EXPECT}},
    [7] = {{"upgrade", HEADER_UPGRADE}, {"trailer", HEADER_TRAILER}},
    [10] = {{"connection", HEADER_CONNECTION}, {"keep-alive", HEADER_KEEP_ALIVE}},
    [14] = {{"content-length", HEADER_CONTENT_LENGTH}, {"http2-settings", HEADER_HTTP2_SETTINGS}},
    [16] = {{"proxy-connection", HEADER_PROXY_CONNECTION}},
    [17] = {{"transfer-encoding", HEADER_TRANSFER_ENCODING}},
    [18] = {{"proxy-authenticate", HEADER_PROXY_AUTHENTICATE}},
    [19] = {{"proxy-authorization", HEADER_PROXY_AUTHORIZATION}},
    [25] = {{"proxy-authentication-info", HEADER_PROXY_AUTHENTICATION_INFO}},
};

/* Folds the case of letters, which leaves digits and hyphens alone: enough for tokens. */
static uint64_t folded_8(const char *at)
{
    uint64_t word;

    memcpy(&word, at, sizeof word);
    return word | 0x2020202020202020;
}

static uint32_t folded_4(const char *at)
{
    uint32_t word;

    memcpy(&word, at, sizeof word);
    return word | 0x20202020;
}

bool http1_is(struct text token, struct text name)
{
    uint32_t size = name.size;

    if (token.size != size)
        return false;
    if (size < 4)
        return text_equal_folded(token, name);
    if (size < 8)
        return folded_4(token.at) == folded_4(name.at) &&
               folded_4(token.at + size - 4) == folded_4(name.at + size - 4);
    for (uint32_t i = 0; i < size - 8; i += 8)
        if (folded_8(token.at + i) != folded_8(name.at + i))
            return false;
    return folded_8(token.at + size - 8) == folded_8(name.at + size - 8);
}

/* Whether it is the name but for underscores in place of hyphens. */
static bool is_disguised(struct text token, struct text name)
{
    for (uint32_t i = 0; i < name.size; i++)
        if (lower_case(token.at[i]) != name.at[i] && (token.at[i] != '_' || name.at[i] != '-'))
            return false;
    return true;
}

enum header http1_find_header(struct text name)
{
    for (size_t i = 0; i < 2; i++) {
        struct text other = {headers[name.size][i].name, name.size};

        if (!other.at || (name.at[0] | 0x20) != other.at[0])
            continue;
        if (http1_is(name, other))
            return headers[name.size][i].header;
        if (is_disguised(name, other))
            return HEADER_DISGUISED;
    }
    return HEADER_OTHER;
}

/* Behind the host: nothing, or a colon and digits. */
static bool is_port(const char *at, const char *end)
{
    uint64_t port = 0;

    if (at == end)
        return true;
    if (*at++ != ':')
        return false;
    return at == end || (http1_number(text_between(at, end), &port) && port <= UINT16_MAX);
}

bool http1_authority(struct text authority, struct text *host)
{
    const char *at = authority.at, *end = authority.at + authority.size, *from = at;

    if (authority.size == 0)
        return false;
    if (*at == '[') {
        at = class_end(at + 1, end, IN_V6);
        if (at == from + 1 || at == end || *at != ']')
            return false;
        at++;
    } else {
        at = class_end(at, end, IN_HOST);
    }
    *host = text_between(from, at);
    return host->size > 0 && is_port(at, end);
}
