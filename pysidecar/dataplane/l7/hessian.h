/* Hessian 2 as Dubbo writes it (the final grammar; SOFA's is an older draft): strings are read, and
 * values of any kind are skipped. Nothing is allocated, input drives no recursion, and the work is
 * linear.
 *
 * Each function returns false where the bytes are no such thing, or end too early. Then, what has
 * been read until there is of no use any more. */
#ifndef PYSIDECAR_L7_HESSIAN_H
#define PYSIDECAR_L7_HESSIAN_H

#include "base/text.h"

enum {
    HESSIAN_CLASSES = 256,    /* definitions in one stream */
    HESSIAN_DEPTH = 256,      /* values within others; the last one of each counts as beside it */
    HESSIAN_VALUES = 1000000, /* in one stream that are skipped: some milliseconds of a worker */
};

/* A stream of values. Their class definitions are of all that follows. */
struct hessian {
    const uint8_t *at, *end;
    uint32_t class_count, skipped;
    uint32_t class_fields[HESSIAN_CLASSES]; /* how many each has */
};

void hessian_begin(struct hessian *hessian, const uint8_t *data, size_t size);
/* A string; null: an empty one whose `at` is NULL. Those in several chunks (more than 65,535
 * UTF-16 units) are refused. The text is as it is on the wire: UTF-8 with surrogates. */
bool hessian_string(struct hessian *hessian, struct text *text);
/* An int or a long. */
bool hessian_number(struct hessian *hessian, int64_t *number);
/* Goes into a map, typed or not: hessian_leave, a key, a value, and again. */
bool hessian_enter_map(struct hessian *hessian);
/* Whether a map or a list of unknown length ends here; then it is left. */
bool hessian_leave(struct hessian *hessian);
/* A value of any kind. */
bool hessian_skip(struct hessian *hessian);

#endif
