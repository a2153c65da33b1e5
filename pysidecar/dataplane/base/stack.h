/* A stack that any thread pushes to and one takes whole. */
#ifndef PYSIDECAR_BASE_STACK_H
#define PYSIDECAR_BASE_STACK_H

#include <stdatomic.h>

/* Pushes the chain from `first` to `last`, linked by their member `next`. `*was` is what was on top
 * before. */
#define STACK_PUSH_CHAIN(stack, first, last, next, was)                            \
    do {                                                                           \
        *(was) = atomic_load_explicit((stack), memory_order_relaxed);              \
        do                                                                         \
            (last)->next = *(was);                                                 \
        while (!atomic_compare_exchange_weak_explicit(                             \
            (stack), (was), (first), memory_order_release, memory_order_relaxed)); \
    } while (0)

/* Everything that is on it, the newest first; NULL: nothing. */
#define STACK_TAKE(stack) atomic_exchange_explicit((stack), NULL, memory_order_acquire)

#endif
