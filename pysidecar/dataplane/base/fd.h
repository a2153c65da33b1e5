#ifndef PYSIDECAR_BASE_FD_H
#define PYSIDECAR_BASE_FD_H

#include <unistd.h>

/* Closes a descriptor that is open (or is not: -1), and makes it -1. */
static inline void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

#endif
