#ifndef PYSIDECAR_BASE_FD_H
#define PYSIDECAR_BASE_FD_H

#include <unistd.h>

/* Closes the descriptor unless it is -1, and sets it to -1. */
static inline void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

#endif
