/* For LD_PRELOAD: lets one allocation of a thread other than the main one fail, at a moment that
 * the test chooses; or the next calloc() there. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stddef.h>
#include <unistd.h>

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);

static atomic_int armed, zeroed_armed;
static int told, awaited;

/* The next such allocation writes a byte to `tell`, waits for one from `await`, and fails. */
void fail_next_allocation(int tell, int await)
{
    told = tell;
    awaited = await;
    atomic_store(&armed, 1);
}

void *malloc(size_t size)
{
    struct pollfd go_on = {.events = POLLIN};

    if (gettid() == getpid() || !atomic_exchange(&armed, 0))
        return __libc_malloc(size);
    go_on.fd = awaited;
    if (write(told, "", 1) == 1)
        poll(&go_on, 1, -1);
    errno = ENOMEM;
    return NULL;
}

void fail_next_zeroed(void)
{
    atomic_store(&zeroed_armed, 1);
}

void *calloc(size_t count, size_t size)
{
    if (gettid() == getpid() || !atomic_exchange(&zeroed_armed, 0))
        return __libc_calloc(count, size);
    errno = ENOMEM;
    return NULL;
}
