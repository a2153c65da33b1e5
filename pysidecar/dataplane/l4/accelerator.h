/* What all workers share for acceleration: the BPF programs and maps, loaded by libbpf, and the
 * slots that connections have in them. */
#ifndef PYSIDECAR_L4_ACCELERATOR_H
#define PYSIDECAR_L4_ACCELERATOR_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/terms.h"
#include "l4/bpf/record.h"

struct resting_slot {
    uint64_t until_ms;
    uint32_t slot;
};

struct accelerator {
    struct dp_acceleration settings;
    void *object; /* libbpf's; NULL: there is no acceleration */
    struct record *records;
    int attach, join, probe; /* programs */
    int ends;                /* the map of their sockets */
    int wake_senders;        /* a link: what is read from it runs the program */
    _Atomic uint64_t look_at_memory_at_ms;
    atomic_bool memory_short;
    pthread_mutex_t lock; /* of what follows: for a moment in a connection's life */
    struct resting_slot *free;
    size_t first_free, free_count;
};

/* See dp_accelerate. */
int accelerator_open(struct accelerator *accelerator, const char *path,
                     const struct dp_acceleration *settings, char *reason);
void accelerator_close(struct accelerator *accelerator); /* also one that was never opened */

/* Runs a program for one record. Its answer (enum answer) or -errno. */
int accelerator_run(const struct accelerator *accelerator, int program,
                    const struct record *record);
/* Takes the socket out of its map. */
void accelerator_remove(const struct accelerator *accelerator, const struct record *record,
                        enum end end);
/* A slot, or NULL: all are in use, or rest. */
struct record *accelerator_take(struct accelerator *accelerator, uint64_t now_ms);
/* It rests for ACCELERATOR_REST_MS, so that no program that still runs uses it. */
void accelerator_give_back(struct accelerator *accelerator, struct record *record, uint64_t now_ms);
/* Bytes that may wait in one socket: a share of the budget. */
uint32_t accelerator_window(const struct accelerator *accelerator);
/* TCP's memory is the machine's. Looks now and then whether it is short, whoever uses it: then
 * nothing is redirected. One of the workers looks. */
bool accelerator_memory_is_short(struct accelerator *accelerator, uint64_t now_ms);

enum { ACCELERATOR_REST_MS = 1000 };

#endif
