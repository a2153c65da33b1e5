/* A lock-free stack: any thread pushes, one thread takes everything. */
#ifndef PYSIDECAR_BASE_STACK_H
#define PYSIDECAR_BASE_STACK_H

#include <stdatomic.h>

/* Pushes the chain from `first` to `last`, linked by their member `next`. `*was` receives the
 * previous top. */
#define STACK_PUSH_CHAIN(stack, first, last, next, was)                            \
    do {                                                                           \
        *(was) = atomic_load_explicit((stack), memory_order_relaxed);              \
        do                                                                         \
            (last)->next = *(was);                                                 \
        while (!atomic_compare_exchange_weak_explicit(                             \
            (stack), (was), (first), memory_order_release, memory_order_relaxed)); \
    } while (0)

/* Takes everything, the newest first; NULL if the stack is empty. */
#define STACK_TAKE(stack) atomic_exchange_explicit((stack), NULL, memory_order_acquire)

#endif
