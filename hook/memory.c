/* The functions that GCC itself calls to copy and fill structures (GCC manual, "Standards"). The
 * library links to no libc, so it brings its own, hidden from everybody else. The sanitizers bring
 * theirs. */
#include <stddef.h>

#ifndef __SANITIZE_ADDRESS__

void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memmove(void *to, const void *from, size_t size);
void *memset(void *to, int value, size_t size);
int memcmp(const void *a, const void *b, size_t size);

/* Or GCC would turn these loops into calls of themselves. */
#define PLAIN_LOOPS __attribute__((optimize("no-tree-loop-distribute-patterns")))

PLAIN_LOOPS void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
    for (size_t i = 0; i < size; i++)
        ((char *)to)[i] = ((const char *)from)[i];
    return to;
}

PLAIN_LOOPS void *memmove(void *to, const void *from, size_t size)
{
    if (to <= from)
        return memcpy(to, from, size);
    for (size_t i = size; i > 0; i--)
        ((char *)to)[i - 1] = ((const char *)from)[i - 1];
    return to;
}

PLAIN_LOOPS void *memset(void *to, int value, size_t size)
{
    for (size_t i = 0; i < size; i++)
        ((char *)to)[i] = (char)value;
    return to;
}

PLAIN_LOOPS int memcmp(const void *a, const void *b, size_t size)
{
    const unsigned char *left = a, *right = b;

    for (size_t i = 0; i < size; i++)
        if (left[i] != right[i])
            return left[i] < right[i] ? -1 : 1;
    return 0;
}

#endif
