/* What the fuzz targets share: taking an input apart, and counting descriptors. */
#ifndef FUZZ_H
#define FUZZ_H

#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *count, char ***arguments);

/* Unlike assert(), in every build. */
#define CHECK(condition)                                                              \
    do                                                                                \
        if (!(condition)) {                                                           \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                                  \
        }                                                                             \
    while (0)

struct input {
    const uint8_t *at;
    size_t left;
};

/* Fills up with zeros. */
static inline void take(struct input *input, void *to, size_t size)
{
    size_t taken = size < input->left ? size : input->left;

    memset(to, 0, size);
    memcpy(to, input->at, taken);
    input->at += taken;
    input->left -= taken;
}

static inline uint8_t take_u8(struct input *input)
{
    uint8_t value;

    take(input, &value, sizeof value);
    return value;
}

static inline uint16_t take_u16(struct input *input)
{
    uint16_t value;

    take(input, &value, sizeof value);
    return value;
}

/* Of this process. */
static inline int count_fds(void)
{
    DIR *directory = opendir("/proc/self/fd");
    int count = 0;

    CHECK(directory);
    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

#endif
