/* Whether the application's pointers can be read: the kernel answers a bad one with EFAULT, and
 * does not kill. We ask by system calls that read their argument and do nothing with it. */
#include <errno.h>

#include "mosnhook.h"
#include "sys.h"

enum {
    SMALLEST_PAGE = 4096,
    MAIN_STACK = 8 << 20, /* bytes at most: far below it are the stacks of other threads */
    NOTHING_TO_DO = -1,   /* to rt_sigprocmask, which reads the set before it notices */
    WORD = 8,
};

static bool same_page(const void *a, const void *b)
{
    return (uintptr_t)a / SMALLEST_PAGE == (uintptr_t)b / SMALLEST_PAGE;
}

static const char *last_of(const void *at, size_t size)
{
    return (const char *)((uintptr_t)at + size - 1);
}

static bool word_readable(const void *at)
{
    uintptr_t word = (uintptr_t)at & ~(uintptr_t)(WORD - 1);

    /* NULL means no set at all there. */
    return word && sys_sigprocmask(NOTHING_TO_DO, (const uint64_t *)word, NULL) != -EFAULT;
}

bool pointer_readable(const void *at, size_t size)
{
    const char *last = last_of(at, size);

    return word_readable(at) && (same_page(at, last) || word_readable(last));
}

bool word_writable(void *at)
{
    return (uintptr_t)at % WORD || sys_sigprocmask(0, NULL, at) != -EFAULT;
}

/* Asks with an address of one byte, which the kernel reads and then refuses for any kind of socket.
 * By connect(): its caller may be in a sandbox that allows nothing else. */
static bool byte_readable(int fd, const void *at)
{
    int result = sys_connect(fd, at, 1);

    /* With the last two the kernel did not get as far as the address. */
    return result != -EFAULT && result != -EBADF && result != -ENOTSOCK;
}

static uintptr_t main_stack_end; /* 0: not known */

void pointers_start(const void *on_main_stack)
{
    main_stack_end = (uintptr_t)on_main_stack;
}

/* Whether it is a variable of one of our callers, as mostly: then it can be read. In the main
 * thread everything above us is its stack; in another thread we know this page only. */
static bool on_stack(const void *at, const char *last)
{
    uintptr_t here = (uintptr_t)__builtin_frame_address(0);

    if (same_page((const void *)here, at) && same_page(at, last))
        return true;
    return here < main_stack_end && main_stack_end - here < MAIN_STACK && (uintptr_t)at > here &&
           (uintptr_t)last < main_stack_end && (uintptr_t)last > here;
}

bool address_readable(int fd, const struct sockaddr *address, socklen_t length)
{
    const char *last = last_of(address, length);

    if (on_stack(address, last))
        return true;
    return byte_readable(fd, address) && (same_page(address, last) || byte_readable(fd, last));
}
