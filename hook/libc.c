/* The real functions, found with dlsym(RTLD_NEXT), so that other preloaded libraries, before or
 * behind us, keep working. Without dlsym (glibc before 2.34 in a program without libdl), plain
 * system calls. */
#include <errno.h>
#include <stdarg.h>
#include <time.h>

#include "mosnhook.h"
#include "sys.h"

#ifndef RTLD_NEXT
#define RTLD_NEXT ((void *)-1L)
#endif

/* Weak, so that the library depends on nothing: the program's libc brings them. */
extern void *dlsym(void *handle, const char *name) __attribute__((weak));
extern char *dlerror(void) __attribute__((weak));
extern int *__errno_location(void) __attribute__((weak, const));

void set_errno(int error)
{
    if (__errno_location)
        *__errno_location() = error;
}

int get_errno(void)
{
    return __errno_location ? *__errno_location() : 0;
}

int errno_result(int error)
{
    if (error == 0)
        return 0;
    set_errno(error);
    return -1;
}

static long kernel_result(long result)
{
    if (result >= 0)
        return result;
    set_errno((int)-result);
    return -1;
}

static int plain_connect(int fd, const struct sockaddr *address, socklen_t length)
{
    return (int)kernel_result(sys_connect(fd, address, length));
}

static int plain_getpeername(int fd, struct sockaddr *address, socklen_t *length)
{
    return (int)kernel_result(sys_getpeername(fd, address, length));
}

static int plain_getsockopt(int fd, int level, int name, void *value, socklen_t *length)
{
    return (int)kernel_result(sys_getsockopt(fd, level, name, value, length));
}

static ssize_t plain_sendto(int fd, const void *bytes, size_t size, int flags,
                            const struct sockaddr *address, socklen_t length)
{
    return kernel_result(sys_sendto(fd, bytes, size, flags, address, length));
}

static ssize_t plain_sendmsg(int fd, const struct msghdr *message, int flags)
{
    return kernel_result(sys_sendmsg(fd, message, flags));
}

static int plain_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    return (int)kernel_result(sys_call(SYS_sendmmsg, fd, (long)messages, (long)count, flags, 0, 0));
}

static ssize_t plain_recvfrom(int fd, void *bytes, size_t size, int flags, struct sockaddr *address,
                              socklen_t *length)
{
    return kernel_result(
        sys_call(SYS_recvfrom, fd, (long)bytes, (long)size, flags, (long)address, (long)length));
}

static ssize_t plain_recv(int fd, void *bytes, size_t size, int flags)
{
    return plain_recvfrom(fd, bytes, size, flags, NULL, NULL);
}

static ssize_t plain_recvmsg(int fd, struct msghdr *message, int flags)
{
    return kernel_result(sys_call(SYS_recvmsg, fd, (long)message, flags, 0, 0, 0));
}

static ssize_t plain_read(int fd, void *bytes, size_t size)
{
    return kernel_result(sys_call(SYS_read, fd, (long)bytes, (long)size, 0, 0, 0));
}

static ssize_t plain_readv(int fd, const struct iovec *vector, int entries)
{
    return kernel_result(sys_call(SYS_readv, fd, (long)vector, entries, 0, 0, 0));
}

static ssize_t plain_splice(int in, int64_t *in_offset, int out, int64_t *out_offset, size_t size,
                            unsigned flags)
{
    return kernel_result(
        sys_call(SYS_splice, in, (long)in_offset, out, (long)out_offset, (long)size, (long)flags));
}

static int plain_ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    void *argument;

    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    return (int)kernel_result(
        sys_call(SYS_ioctl, fd, (long)(uint32_t)request, (long)argument, 0, 0, 0));
}

static int plain_execve(const char *path, char *const arguments[], char *const entries[])
{
    return (int)kernel_result(
        sys_call(SYS_execve, (long)path, (long)arguments, (long)entries, 0, 0, 0));
}

static int plain_execveat(int directory, const char *path, char *const arguments[],
                          char *const entries[], int flags)
{
    return (int)kernel_result(
        sys_call(SYS_execveat, directory, (long)path, (long)arguments, (long)entries, flags, 0));
}

static int plain_poll(struct pollfd *fds, unsigned long count, int timeout_ms)
{
    return (int)kernel_result(sys_poll(fds, count, timeout_ms));
}

/* For functions without a system call of their own: a libc that lacks one has no callers of it
 * either. */
static int missing(void)
{
    set_errno(ENOSYS);
    return -1;
}

static int missing_spawn(void)
{
    return ENOSYS; /* posix_spawn returns its error */
}

typedef void any_function(void);

#define SYMBOL(name, symbol, fallback)                                  \
    {                                                                   \
        symbol, offsetof(struct libc, name), (any_function *)(fallback) \
    }

static const struct {
    const char *name;
    size_t offset;
    any_function *fallback;
} symbols[] = {
    SYMBOL(connect, "connect", plain_connect),
    SYMBOL(getpeername, "getpeername", plain_getpeername),
    SYMBOL(getsockopt, "getsockopt", plain_getsockopt),
    SYMBOL(sendto, "sendto", plain_sendto),
    SYMBOL(sendmsg, "sendmsg", plain_sendmsg),
    SYMBOL(sendmmsg, "sendmmsg", plain_sendmmsg),
    SYMBOL(recv, "recv", plain_recv),
    SYMBOL(recvfrom, "recvfrom", plain_recvfrom),
    SYMBOL(recvmsg, "recvmsg", plain_recvmsg),
    SYMBOL(read, "read", plain_read),
    SYMBOL(readv, "readv", plain_readv),
    SYMBOL(recv_chk, "__recv_chk", missing),
    SYMBOL(recvfrom_chk, "__recvfrom_chk", missing),
    SYMBOL(read_chk, "__read_chk", missing),
    SYMBOL(splice, "splice", plain_splice),
    SYMBOL(ioctl, "ioctl", plain_ioctl),
    SYMBOL(execve, "execve", plain_execve),
    SYMBOL(execvpe, "execvpe", missing),
    SYMBOL(fexecve, "fexecve", missing),
    SYMBOL(execveat, "execveat", plain_execveat),
    SYMBOL(posix_spawn, "posix_spawn", missing_spawn),
    SYMBOL(posix_spawnp, "posix_spawnp", missing_spawn),
    SYMBOL(poll, "poll", plain_poll),
    SYMBOL(pthread_setcancelstate, "pthread_setcancelstate", NULL),
    SYMBOL(pthread_setcanceltype, "pthread_setcanceltype", NULL),
    SYMBOL(pthread_cleanup_push, "_pthread_cleanup_push", NULL),
    SYMBOL(pthread_cleanup_pop, "_pthread_cleanup_pop", NULL),
};

static struct libc table;
static bool ready; /* atomic; the table is complete */

/* Threads that come here at once all store the same values. */
const struct libc *libc(void)
{
    bool failed = false;

    if (__atomic_load_n(&ready, __ATOMIC_ACQUIRE))
        return &table;
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        any_function **slot = (any_function **)((char *)&table + symbols[i].offset);
        any_function *found = dlsym ? (any_function *)dlsym(RTLD_NEXT, symbols[i].name) : NULL;

        failed |= !found;
        __atomic_store_n(slot, found ? found : symbols[i].fallback, __ATOMIC_RELAXED);
    }
    if (failed && dlerror)
        dlerror(); /* the program must not find our error when it asks for its own */
    __atomic_store_n(&ready, true, __ATOMIC_RELEASE);
    return &table;
}

int64_t now_ns(void)
{
    struct __kernel_timespec now = {0, 0};

    sys_clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}
