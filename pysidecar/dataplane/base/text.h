/* Texts that are a part of something else: no NUL at their end. */
#ifndef PYSIDECAR_BASE_TEXT_H
#define PYSIDECAR_BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct text {
    const char *at;
    uint32_t size; /* bytes; 0: `at` may be anything */
};

/* Of a string constant. */
#define TEXT(constant) ((struct text){constant, sizeof(constant) - 1})

static inline bool text_equal(struct text one, struct text other)
{
    return one.size == other.size && (one.size == 0 || memcmp(one.at, other.at, one.size) == 0);
}

static inline char lower_case(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + ('a' - 'A')) : c;
}

/* Without regard to the case of ASCII letters. */
static inline bool text_equal_folded(struct text one, struct text other)
{
    if (one.size != other.size)
        return false;
    for (uint32_t i = 0; i < one.size; i++)
        if (lower_case(one.at[i]) != lower_case(other.at[i]))
            return false;
    return true;
}

#endif
