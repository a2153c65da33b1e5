/* What it costs to pick an endpoint, and to count a connection there: nanoseconds of processor time
 * for each connection, printed as a line. Arguments: a way, endpoints, how many of them are
 * ejected, threads. The way `all` is the yardstick: the least busy of all, by looking at each. With
 * the last six ways the endpoints have weights, as those of a service. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/random.h"
#include "upstream/cluster.h"

enum {
    HELD = 1024, /* connections of a thread that are open at a time */
    SINCE_MS = 1,
    MOST_THREADS = 64,
};

static struct cluster *cluster;
static bool looks_at_all;
static int connections; /* of a thread */
static pthread_barrier_t start;

static const struct way {
    const char *name;
    enum dp_balance balance;
    bool weighted;
} ways[] = {
    {"turn", DP_ROUND_ROBIN, false},      {"two", DP_LEAST_CONNECTIONS, false},
    {"all", DP_LEAST_CONNECTIONS, false}, {"weighted-turn", DP_ROUND_ROBIN, true},
    {"weighted-random", DP_RANDOM, true}, {"weighted-two", DP_LEAST_REQUESTS, true},
    {"ring", DP_RING_HASH, true},         {"table", DP_MAGLEV, true},
    {"ewma", DP_PEAK_EWMA, true},
};

static uint32_t pick_of_all(uint64_t *random)
{
    uint32_t start = random_below(random, cluster->count), best = start, fewest = UINT32_MAX;

    for (uint32_t i = 0; i < cluster->count; i++) {
        uint32_t at = (start + i) % cluster->count;
        uint32_t active =
            atomic_load_explicit(&cluster->endpoints[at]->active, memory_order_relaxed);

        if (active < fewest && !endpoint_is_ejected(cluster->endpoints[at], SINCE_MS)) {
            best = at;
            fewest = active;
        }
    }
    return best;
}

static void *connect_and_close(void *argument)
{
    uint64_t random = (uintptr_t)argument, *ns = argument;
    struct endpoint *held[HELD] = {NULL};
    struct timespec took;

    pthread_barrier_wait(&start);

    for (int i = 0; i < connections; i++) {
        struct endpoint **slot = &held[i % HELD];
        struct search search = {
            .since_ms = SINCE_MS, .random = &random, .hash = (uint64_t)i * 0x9e3779b97f4a7c15u};
        struct endpoint *picked = looks_at_all ? cluster->endpoints[pick_of_all(&random)]
                                               : cluster_pick_untried(cluster, &search);

        if (*slot) {
            atomic_fetch_sub_explicit(&(*slot)->active, 1, memory_order_relaxed);
            shared_release(&cluster->shared);
        }
        shared_reference(&cluster->shared);
        *slot = picked;
        atomic_fetch_add_explicit(&(*slot)->active, 1, memory_order_relaxed);
    }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &took);
    *ns = (uint64_t)took.tv_sec * 1000000000u + (uint64_t)took.tv_nsec;
    return NULL;
}

static void make_cluster(uint32_t count, uint32_t ejected, const struct way *way)
{
    static struct registry registry;
    struct dp_endpoint *endpoints = calloc(count, sizeof *endpoints);
    struct cluster_plan plan = {.balance = way->balance, .count = count, .weighted = endpoints};

    for (uint32_t i = 0; i < count; i++) {
        endpoints[i].address.scope_id = i;
        endpoints[i].weight = way->weighted ? 1 + i % 3 : 1;
    }
    registry_init(&registry, -1);
    cluster = cluster_intern(&registry, &plan);
    free(endpoints);
    for (uint32_t i = 0; i < ejected; i++)
        endpoint_failed(cluster->endpoints[i], SINCE_MS + 1);
}

int main(int argc, char **argv)
{
    pthread_t threads[MOST_THREADS];
    uint64_t ns[MOST_THREADS], sum = 0;
    const struct way *way = ways;
    uint32_t count;
    int thread_count;

    if (argc != 5)
        return 2;
    while (strcmp(way->name, argv[1]) != 0)
        if (++way == ways + sizeof ways / sizeof *ways)
            return 2;
    count = (uint32_t)strtoul(argv[2], NULL, 10);
    thread_count = atoi(argv[4]);
    looks_at_all = strcmp(way->name, "all") == 0;
    make_cluster(count, (uint32_t)strtoul(argv[3], NULL, 10), way);
    pthread_barrier_init(&start, NULL, (unsigned)thread_count);
    connections = looks_at_all && count > 1000 ? 5000 : 1000000;
    for (int i = 0; i < thread_count; i++)
        if (pthread_create(&threads[i], NULL, connect_and_close, &ns[i]) != 0)
            return 1;
    for (int i = 0; i < thread_count; i++) {
        pthread_join(threads[i], NULL);
        sum += ns[i];
    }
    printf("%.1f\n", (double)sum / thread_count / connections);
    return 0;
}
