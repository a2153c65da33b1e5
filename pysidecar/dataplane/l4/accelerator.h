/* What all workers share for acceleration: the BPF programs and maps, which libbpf loads, and the
 * slots in them that connections use. */
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
    void *object; /* libbpf's; NULL without acceleration */
    struct record *records;
    int attach, join, probe; /* programs */
    int ends;                /* the map of applications' and downstream sockets */
    int wake_senders;        /* a link; reading from an iterator of it runs the program */
    _Atomic uint64_t look_at_memory_at_ms;
    atomic_bool memory_short;
    pthread_mutex_t lock; /* of what follows; held for a moment of a connection's life */
    struct resting_slot *free;
    size_t first_free, free_count;
};

/* See dp_accelerate. */
int accelerator_open(struct accelerator *accelerator, const char *path,
                     const struct dp_acceleration *settings, char *reason);
void accelerator_close(struct accelerator *accelerator); /* also if it was never opened */

/* Runs a program for one record. Its answer (enum answer) or -errno. */
int accelerator_run(const struct accelerator *accelerator, int program,
                    const struct record *record);
/* Takes a socket out of its map. */
void accelerator_remove(const struct accelerator *accelerator, const struct record *record,
                        enum role role);
/* Takes a slot. NULL if all are in use or rest. */
struct record *accelerator_take(struct accelerator *accelerator, uint64_t now_ms);
/* Gives a slot back. It rests for ACCELERATOR_REST_MS, until no program that still runs can use it.
 */
void accelerator_give_back(struct accelerator *accelerator, struct record *record, uint64_t now_ms);
/* How many bytes may wait in one socket: a share of the budget. */
uint32_t accelerator_window(const struct accelerator *accelerator);
/* Whether TCP's memory, which is the machine's, is short, whoever uses it. Then nothing is
 * redirected. One of the workers looks now and then. */
bool accelerator_memory_is_short(struct accelerator *accelerator, uint64_t now_ms);

enum { ACCELERATOR_REST_MS = 1000 };

#endif
