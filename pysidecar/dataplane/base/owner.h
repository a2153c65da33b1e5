#ifndef PYSIDECAR_BASE_OWNER_H
#define PYSIDECAR_BASE_OWNER_H

#include <stddef.h>

/* The structure that `pointer` is the `member` of (container_of). */
#define OWNER(pointer, type, member) ((type *)(void *)((char *)(pointer)-offsetof(type, member)))

#endif
