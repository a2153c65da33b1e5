/* Raw system calls: results are the kernel's own, -errno on failure.
 *
 * They are not libc's for two reasons: other preloaded libraries must not see what the hook does
 * with its own descriptors, and errno stays as it is. */
#ifndef MOSNHOOK_SYS_H
#define MOSNHOOK_SYS_H

#include <fcntl.h>
#include <linux/time_types.h>
#include <poll.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#ifndef SYS_close_range /* younger than some headers */
#define SYS_close_range 436
#endif

#ifndef O_PATH /* only _GNU_SOURCE shows it */
#define O_PATH 010000000
#endif

#if defined(__x86_64__)

static inline long sys_call(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* clone(2) with CLONE_VM and CLONE_VFORK: the new thread or process runs the function and ends
 * while the caller waits, further down on the caller's own stack. */
static inline long sys_clone_and_wait(long flags, void (*function)(void *), void *argument)
{
    register long r10 __asm__("r10") = 0;
    register long r8 __asm__("r8") = 0;
    register void (*r9)(void *) __asm__("r9") = function;
    register void *r12 __asm__("r12") = argument;
    long stack, result = SYS_clone;

    __asm__ volatile(
        "lea -256(%%rsp), %[stack]\n\t" /* below what the ABI lets leaf functions use */
        "and $-16, %[stack]\n\t"
        "syscall\n\t"
        "test %%rax, %%rax\n\t"
        "jnz 1f\n\t"
        "xor %%ebp, %%ebp\n\t"
        "mov %%r12, %%rdi\n\t"
        "call *%%r9\n\t"
        "mov %[exit], %%eax\n\t"
        "xor %%edi, %%edi\n\t"
        "syscall\n"
        "1:"
        : "+a"(result), [stack] "=&S"(stack)
        : "D"(flags), "d"(0L), "r"(r10), "r"(r8), "r"(r9), "r"(r12), [exit] "i"(SYS_exit)
        : "rcx", "r11", "memory");
    return result;
}

#elif defined(__aarch64__)

static inline long sys_call(long number, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;

    __asm__ volatile("svc 0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    return x0;
}

static inline long sys_clone_and_wait(long flags, void (*function)(void *), void *argument)
{
    register long x8 __asm__("x8") = SYS_clone;
    register long x0 __asm__("x0") = flags;
    register long x1 __asm__("x1");
    register long x2 __asm__("x2") = 0;
    register long x3 __asm__("x3") = 0;
    register long x4 __asm__("x4") = 0;
    register void (*x9)(void *) __asm__("x9") = function;
    register void *x10 __asm__("x10") = argument;

    __asm__ volatile("mov x1, sp\n\t" /* which is aligned */
                     "svc 0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, xzr\n\t"
                     "mov x0, x10\n\t"
                     "blr x9\n\t"
                     "mov x8, %[exit]\n\t"
                     "mov x0, xzr\n\t"
                     "svc 0\n"
                     "1:"
                     : "+r"(x0), "=&r"(x1)
                     : "r"(x8), "r"(x2), "r"(x3), "r"(x4), "r"(x9), "r"(x10), [exit] "i"(SYS_exit)
                     : "memory");
    return x0;
}

#else
#error "the hook knows the system calls of x86_64 and aarch64 only"
#endif

static inline int sys_close(int fd)
{
    return (int)sys_call(SYS_close, fd, 0, 0, 0, 0, 0);
}

static inline int sys_close_range(unsigned first, unsigned last)
{
    return (int)sys_call(SYS_close_range, first, last, 0, 0, 0, 0);
}

static inline int sys_fcntl(int fd, int command, long argument)
{
    return (int)sys_call(SYS_fcntl, fd, command, argument, 0, 0, 0);
}

static inline int sys_openat(int directory, const char *path, int flags, int mode)
{
    return (int)sys_call(SYS_openat, directory, (long)path, flags, mode, 0, 0);
}

static inline int sys_open(const char *path, int flags, int mode)
{
    return sys_openat(AT_FDCWD, path, flags, mode);
}

static inline int sys_fstat(int fd, struct stat *status)
{
    return (int)sys_call(SYS_fstat, fd, (long)status, 0, 0, 0, 0);
}

static inline long sys_write(int fd, const void *bytes, size_t size)
{
    return sys_call(SYS_write, fd, (long)bytes, (long)size, 0, 0, 0);
}

static inline long sys_mmap(void *at, size_t size, int protection, int flags, int fd)
{
    return sys_call(SYS_mmap, (long)at, (long)size, protection, flags, fd, 0);
}

static inline int sys_socket(int family, int type, int protocol)
{
    return (int)sys_call(SYS_socket, family, type, protocol, 0, 0, 0);
}

static inline int sys_connect(int fd, const void *address, socklen_t length)
{
    return (int)sys_call(SYS_connect, fd, (long)address, length, 0, 0, 0);
}

static inline int sys_shutdown(int fd, int how)
{
    return (int)sys_call(SYS_shutdown, fd, how, 0, 0, 0, 0);
}

static inline int sys_getsockname(int fd, void *address, socklen_t *length)
{
    return (int)sys_call(SYS_getsockname, fd, (long)address, (long)length, 0, 0, 0);
}

static inline int sys_getpeername(int fd, void *address, socklen_t *length)
{
    return (int)sys_call(SYS_getpeername, fd, (long)address, (long)length, 0, 0, 0);
}

static inline int sys_getsockopt(int fd, int level, int name, void *value, socklen_t *length)
{
    return (int)sys_call(SYS_getsockopt, fd, level, name, (long)value, (long)length, 0);
}

static inline int sys_setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
    return (int)sys_call(SYS_setsockopt, fd, level, name, (long)value, length, 0);
}

static inline long sys_sendmsg(int fd, const struct msghdr *message, int flags)
{
    return sys_call(SYS_sendmsg, fd, (long)message, flags, 0, 0, 0);
}

static inline long sys_sendto(int fd, const void *bytes, size_t size, int flags,
                              const void *address, socklen_t length)
{
    return sys_call(SYS_sendto, fd, (long)bytes, (long)size, flags, (long)address, length);
}

static inline long sys_recv(int fd, void *bytes, size_t size, int flags)
{
    return sys_call(SYS_recvfrom, fd, (long)bytes, (long)size, flags, 0, 0);
}

static inline int sys_poll(struct pollfd *fds, unsigned long count, int timeout_ms)
{
#ifdef SYS_poll
    return (int)sys_call(SYS_poll, (long)fds, (long)count, timeout_ms, 0, 0, 0);
#else
    struct __kernel_timespec timeout = {timeout_ms / 1000, timeout_ms % 1000 * 1000000L};

    return (int)sys_call(SYS_ppoll, (long)fds, (long)count, timeout_ms < 0 ? 0 : (long)&timeout, 0,
                         8, 0);
#endif
}

static inline int sys_clock_gettime(int clock, struct __kernel_timespec *now)
{
    return (int)sys_call(SYS_clock_gettime, clock, (long)now, 0, 0, 0, 0);
}

static inline int sys_getpid(void)
{
    return (int)sys_call(SYS_getpid, 0, 0, 0, 0, 0, 0);
}

static inline unsigned sys_geteuid(void)
{
    return (unsigned)sys_call(SYS_geteuid, 0, 0, 0, 0, 0, 0);
}

static inline int sys_prctl(int operation, void *argument)
{
    return (int)sys_call(SYS_prctl, operation, (long)argument, 0, 0, 0, 0);
}

/* Signal sets are 64 bits to the kernel. */
static inline int sys_sigprocmask(int how, const uint64_t *set, uint64_t *old)
{
    return (int)sys_call(SYS_rt_sigprocmask, how, (long)set, (long)old, 8, 0, 0);
}

/* The kernel's struct sigaction, which is not libc's. */
struct sys_sigaction {
    uint64_t handler;
    uint64_t flags;
    uint64_t restorer;
    uint64_t mask;
};

static inline int sys_sigaction(int number, struct sys_sigaction *current)
{
    return (int)sys_call(SYS_rt_sigaction, number, 0, (long)current, 8, 0, 0);
}

#endif
