/* For LD_PRELOAD: a connection whose one end never stops sending, and whose other end takes
 * everything. No real sender keeps ahead of a worker for as long as a test wants it to. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/socket.h>

static atomic_int source = -1, sink = -1;

/* What is read of `from`, and written to `to`: descriptors, or -1. */
void make_endless(int from, int to)
{
    atomic_store(&sink, to);
    atomic_store(&source, from);
}

ssize_t recv(int fd, void *buffer, size_t size, int flags)
{
    ssize_t (*real)(int, void *, size_t, int) = dlsym(RTLD_NEXT, "recv");

    return fd == atomic_load(&source) ? (ssize_t)size : real(fd, buffer, size, flags);
}

ssize_t send(int fd, const void *buffer, size_t size, int flags)
{
    ssize_t (*real)(int, const void *, size_t, int) = dlsym(RTLD_NEXT, "send");

    return fd == atomic_load(&sink) ? (ssize_t)size : real(fd, buffer, size, flags);
}

/* Nothing that could be spliced: it is read. */
ssize_t splice(int in, off64_t *in_at, int out, off64_t *out_at, size_t size, unsigned flags)
{
    ssize_t (*real)(int, off64_t *, int, off64_t *, size_t, unsigned) = dlsym(RTLD_NEXT, "splice");

    return in == atomic_load(&source) ? 0 : real(in, in_at, out, out_at, size, flags);
}
