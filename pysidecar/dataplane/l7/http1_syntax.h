/* HTTP/1.1's grammar, as strict as RFC 9110 and RFC 9112 have it, or stricter. */
#ifndef PYSIDECAR_L7_HTTP1_SYNTAX_H
#define PYSIDECAR_L7_HTTP1_SYNTAX_H

#include "base/text.h"

/* Headers that mean something to a proxy. */
enum header {
    HEADER_OTHER,
    HEADER_CONNECTION,
    HEADER_CONTENT_LENGTH,
    HEADER_EXPECT,
    HEADER_HOST,
    HEADER_HTTP2_SETTINGS,
    HEADER_KEEP_ALIVE,
    HEADER_PROXY_AUTHENTICATE,
    HEADER_PROXY_AUTHENTICATION_INFO,
    HEADER_PROXY_AUTHORIZATION,
    HEADER_PROXY_CONNECTION,
    HEADER_TE,
    HEADER_TRAILER,
    HEADER_TRANSFER_ENCODING,
    HEADER_UPGRADE,
    /* Written with an underscore, so that servers which make variables of headers (CGI) take it for
     * the real one. */
    HEADER_DISGUISED,
};

/* What is still to be read. Nothing at or behind `end` is looked at. */
struct cursor {
    const char *at, *end;
};

static inline struct text text_between(const char *from, const char *to)
{
    return (struct text){from, (uint32_t)(to - from)};
}

/* The first byte that is not one of a token (RFC 9110, 5.6.2), or `end`. */
const char *http1_token_end(const char *at, const char *end);
/* The first byte that may not stand in a field's value: a control character but HTAB. */
const char *http1_value_end(const char *at, const char *end);
/* The first byte that may not stand in a request's target. */
const char *http1_target_end(const char *at, const char *end);

bool http1_is_token(struct text text);
/* Whether a token is this one, which is in lower case and has no underscore. */
bool http1_is(struct text token, struct text name);
bool http1_is_value(struct text text);

/* Decimal digits and nothing else, below 2^63. */
bool http1_number(struct text digits, uint64_t *number);

/* Takes the next element from a list (RFC 9110, 5.6.1), without the space around it. Empty ones are
 * skipped. False: there is none. */
bool http1_next_element(struct text *list, struct text *element);
/* Whether one of the elements is this, whatever the case. */
bool http1_lists(struct text list, struct text element);

enum { HEADER_BYTES = 26 }; /* more than the name of any of these has */

/* By the size of a name: the letters that one of these begins with. Bit 1 is "a". */
extern const uint32_t http1_header_letters[HEADER_BYTES];

enum header http1_find_header(struct text name);

/* Of a token. */
static inline enum header http1_header(struct text name)
{
    if (name.size == 0 || name.size >= HEADER_BYTES ||
        (http1_header_letters[name.size] >> (name.at[0] & 31) & 1) == 0)
        return HEADER_OTHER;
    return http1_find_header(name);
}

/* Host and port as in a Host header. Stores the host without its port. */
bool http1_authority(struct text authority, struct text *host);

#endif
