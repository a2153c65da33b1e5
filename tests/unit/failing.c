#include "failing.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

static atomic_uint left; /* until one fails */
static atomic_bool failed;

void failing_set(unsigned number)
{
    atomic_store(&failed, false);
    atomic_store(&left, number);
}

bool failing_take(void)
{
    atomic_store(&left, 0);
    return atomic_exchange(&failed, false);
}

static bool fails(void)
{
    unsigned before = atomic_load(&left);

    while (before > 0 && !atomic_compare_exchange_weak(&left, &before, before - 1))
        ;
    if (before != 1)
        return false;
    atomic_store(&failed, true);
    errno = ENOMEM;
    return true;
}

/* The linker's --wrap leads calls of the data plane to these. */
void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *memory, size_t size);

void *__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *memory, size_t size)
{
    return fails() ? NULL : __real_realloc(memory, size);
}
