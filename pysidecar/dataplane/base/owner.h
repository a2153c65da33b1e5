#ifndef PYSIDECAR_BASE_OWNER_H
#define PYSIDECAR_BASE_OWNER_H

#include <stddef.h>

/* The structure of that type of which `member` is a part, from a pointer to the part. */
#define OWNER(pointer, type, member) ((type *)(void *)((char *)(pointer)-offsetof(type, member)))

#endif
