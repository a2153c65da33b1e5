/* Writes pieces of JSON, as json.dumps() writes them. Each function returns where the next one
 * goes on; there must be room. A `key` is what stands before the value, as it is written: with its
 * comma, quotes and colon. */
#ifndef PYSIDECAR_API_JSON_H
#define PYSIDECAR_API_JSON_H

#include <stdbool.h>
#include <string.h>

#include "base/terms.h"

static inline char *json_put(char *at, const char *text)
{
    return stpcpy(at, text);
}

char *json_number(char *at, uint64_t number);
/* null unless it is known. */
char *json_known(char *at, const char *key, uint64_t number, bool known);
/* A number with up to three digits after the point. */
char *json_thousandths(char *at, uint64_t number);
/* Nanoseconds as milliseconds, rounded to microseconds. */
char *json_milliseconds(char *at, uint64_t ns);
/* A text that is known to need no escaping, in quotes. */
char *json_name(char *at, const char *key, const char *name);
/* Any bytes; null where there are none. Takes up to JSON_MOST_OF_A_BYTE for each. */
char *json_text(char *at, const char *key, const char *text, size_t size);
/* Nanoseconds since 1970, by RFC 3339, without quotes. */
char *json_time(char *at, uint64_t ns);
/* Bytes in hexadecimal digits, in quotes; neither key nor value where all are 0. */
char *json_digits(char *at, const char *key, const uint8_t *bytes, size_t size);
char *json_address(char *at, const char *key, const struct mosnhook_address *address);

enum { JSON_MOST_OF_A_BYTE = 6 };

#endif
