#include "upstream/service.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/owner.h"
#include "base/random.h"

/* Of endpoints: behind those of the route tables. */
enum { FIRST_SCOPE = 16 };

/* ---- standings ---- */

static void name_of(const struct service_plan *plan, char name[DP_SERVICE_BYTES])
{
    size_t size = plan->name.size < DP_SERVICE_BYTES ? plan->name.size : DP_SERVICE_BYTES;

    memset(name, 0, DP_SERVICE_BYTES);
    if (size)
        memcpy(name, plan->name.at, size);
}

void standings_init(struct standings *standings, uint32_t workers)
{
    *standings = (struct standings){.workers = workers};
    slab_init(&standings->tallies, workers * sizeof(struct tally));
}

static struct standing *standing_create(struct standings *standings,
                                        const struct service_plan *plan, uint64_t hash)
{
    struct standing *standing = calloc(1, sizeof *standing);

    if (standing)
        standing->tallies = slab_take(&standings->tallies);
    if (!standing || !standing->tallies || !map_add(&standings->map, &standing->entry, hash)) {
        if (standing)
            slab_give(&standings->tallies, standing->tallies);
        free(standing);
        errno = ENOMEM;
        return NULL;
    }
    standing->all = standings;
    standing->number = plan->settings->number;
    name_of(plan, standing->name);
    standing->next = standings->first;
    standing->previous = &standings->first;
    if (standing->next)
        standing->next->previous = &standing->next;
    standings->first = standing;
    return standing;
}

static void standing_free(struct standing *standing)
{
    struct standings *standings = standing->all;

    *standing->previous = standing->next;
    if (standing->next)
        standing->next->previous = standing->previous;
    map_remove(&standings->map, &standing->entry);
    slab_give(&standings->tallies, standing->tallies);
    free(standing);
}

/* There was a service with it, or almost. Names that are found may come and go for ever. */
static void standing_leave(struct standing *standing, enum dp_role role)
{
    if (standing->services == 0 && role != DP_ROLE_CONFIGURED)
        standing_free(standing);
}

struct standing *standings_find(const struct standings *standings, uint32_t number)
{
    for (struct map_entry *entry = map_first(&standings->map, random_mix(number)); entry;
         entry = map_next(entry)) {
        struct standing *standing = OWNER(entry, struct standing, entry);

        if (standing->number == number)
            return standing;
    }
    return NULL;
}

static struct standing *standing_intern(struct standings *standings,
                                        const struct service_plan *plan)
{
    struct standing *standing = standings_find(standings, plan->settings->number);
    char name[DP_SERVICE_BYTES];

    if (!standing)
        return standing_create(standings, plan, random_mix(plan->settings->number));
    name_of(plan, name);
    if (memcmp(name, standing->name, sizeof name) == 0)
        return standing;
    errno = EINVAL;
    return NULL;
}

void standings_close(struct standings *standings)
{
    while (standings->first)
        standing_free(standings->first);
    map_close(&standings->map);
    slab_close(&standings->tallies);
}

/* ---- services ---- */

uint32_t service_scope(uint32_t number)
{
    return FIRST_SCOPE + number;
}

/* Those of a level stand together. */
static struct cluster_plan cluster_of(const struct service_plan *plan, uint32_t level)
{
    uint32_t count = plan->settings->endpoint_count, first = 0, end;

    while (first < count && plan->endpoints[first].level < level)
        first++;
    for (end = first; end < count && plan->endpoints[end].level == level;)
        end++;
    return (struct cluster_plan){
        .key = plan->settings->number + ((uint64_t)level << 32),
        .scope = service_scope(plan->settings->number),
        .balance = plan->settings->balance,
        .count = end - first,
        .weighted = &plan->endpoints[first],
    };
}

/* Its own: the index of the other service says nothing of it. */
static struct dp_resilience resilience_of(const struct service_plan *plan)
{
    struct dp_resilience resilience = {0};

    if (plan->resilience)
        resilience = *plan->resilience;
    resilience.mirror = 0;
    return resilience;
}

static bool levels_are(const struct service *service, const struct service_plan *plan)
{
    for (uint32_t level = 0; level < SERVICE_LEVELS; level++) {
        struct cluster_plan cluster = cluster_of(plan, level);

        if (service->levels[level] ? !cluster_is(service->levels[level], &cluster)
                                   : cluster.count > 0)
            return false;
    }
    return true;
}

static bool service_is(const struct service *service, const struct service_plan *plan)
{
    const struct dp_service *settings = plan->settings;
    struct dp_resilience resilience = resilience_of(plan);

    return memcmp(&service->resilience, &resilience, sizeof resilience) == 0 &&
           service->protocol == settings->protocol && service->role == settings->role &&
           service->timeout_ms == settings->timeout_ms &&
           service->silent_ms == settings->silent_ms && service->idle_ms == settings->idle_ms &&
           service->connections == settings->connections && service->pending == settings->pending &&
           service->await_ms == settings->await_ms && text_equal(service->name, plan->name) &&
           text_equal(service->hash_by, plan->hash_by) &&
           memcmp(&service->policy, &settings->policy, sizeof service->policy) == 0 &&
           levels_are(service, plan);
}

static void service_destroy(struct shared *shared)
{
    struct service *service = OWNER(shared, struct service, shared);
    struct standing *standing = service->standing;

    if (standing->newest == service)
        standing->newest = NULL;
    for (uint32_t level = 0; level < SERVICE_LEVELS; level++)
        if (service->levels[level])
            keeper_release(&service->levels[level]->shared);
    standing->services--;
    standing_leave(standing, service->role);
    free(service);
}

/* One that joins others begins slowly. Those that come with their service do not: there is nobody
 * else. */
static void prepare_endpoint(struct endpoint *endpoint, uint32_t workers, bool joins)
{
    if (endpoint->workers > 0)
        return;
    endpoint->workers = workers;
    if (joins)
        atomic_store_explicit(&endpoint->since_ms, clock_ns(CLOCK_MONOTONIC) / NS_PER_MS,
                              memory_order_relaxed);
}

/* False when out of memory. */
static bool set_level(struct service *service, uint32_t level, struct registry *registry,
                      const struct service_plan *plan)
{
    uint32_t workers = service->standing->all->workers;
    struct cluster_plan settings = cluster_of(plan, level);
    const struct service *before = service->standing->newest;
    bool joins = before && before->cluster;
    struct cluster *cluster;

    if (settings.count == 0)
        return true;
    cluster = service->levels[level] = cluster_intern(registry, &settings);
    for (uint32_t i = 0; cluster && i < settings.count; i++)
        prepare_endpoint(cluster->endpoints[i], workers, joins && !settings.weighted[i].warm);
    return cluster;
}

/* False when out of memory. */
static bool set_endpoints(struct service *service, struct registry *registry,
                          const struct service_plan *plan)
{
    for (uint32_t level = 0; level < SERVICE_LEVELS; level++) {
        if (!set_level(service, level, registry, plan))
            return false;
        if (!service->cluster)
            service->cluster = service->levels[level];
    }
    return true;
}

static struct text copy(char **to, struct text text)
{
    struct text copied = {*to, text.size};

    if (text.size)
        memcpy(*to, text.at, text.size);
    *to += text.size;
    return copied;
}

static struct service *service_create(struct registry *registry, struct standing *standing,
                                      const struct service_plan *plan)
{
    const struct dp_service *settings = plan->settings;
    struct service *service =
        calloc(1, sizeof *service + (size_t)plan->name.size + plan->hash_by.size);
    char *texts;

    if (!service) {
        standing_leave(standing, settings->role);
        return NULL;
    }
    shared_init(&service->shared, &registry->keeper, service_destroy);
    service->standing = standing;
    standing->services++;
    service->protocol = settings->protocol;
    service->role = settings->role;
    service->timeout_ms = settings->timeout_ms;
    service->silent_ms = settings->silent_ms;
    service->idle_ms = settings->idle_ms;
    service->connections = settings->connections;
    service->pending = settings->pending;
    service->await_ms = settings->await_ms;
    service->resilience = resilience_of(plan);
    service->policy = settings->policy;
    texts = service->texts;
    service->name = copy(&texts, plan->name);
    service->hash_by = copy(&texts, plan->hash_by);
    if (set_endpoints(service, registry, plan))
        return service;
    keeper_release(&service->shared);
    return NULL;
}

struct service *service_intern(struct registry *registry, struct standings *standings,
                               const struct service_plan *plan)
{
    struct standing *standing = standing_intern(standings, plan);
    struct service *service;

    if (!standing)
        return NULL;
    if (standing->newest && service_is(standing->newest, plan)) {
        shared_reference(&standing->newest->shared);
        return standing->newest;
    }
    service = service_create(registry, standing, plan);
    if (!service) {
        errno = ENOMEM;
        return NULL;
    }
    standing->newest = service;
    /* Another number of endpoints is another share of them. */
    atomic_store_explicit(&standing->full_until_ms, 0, memory_order_relaxed);
    return service;
}

/* ---- its endpoints ---- */

void service_changed(struct standing *standing)
{
    if (atomic_fetch_add_explicit(&standing->changes, 1, memory_order_relaxed) == UINT32_MAX)
        atomic_fetch_add_explicit(&standing->changes, 1, memory_order_relaxed); /* 0 is: none */
}

uint32_t service_endpoint_count(const struct service *service)
{
    uint32_t count = 0;

    for (uint32_t level = 0; level < SERVICE_LEVELS; level++)
        if (service->levels[level])
            count += service->levels[level]->count;
    return count;
}

/* The level that an endpoint is in, and its index there. */
static const struct cluster *level_of(const struct service *service, uint32_t *index)
{
    const struct cluster *first = service->cluster;

    if (*index < first->count)
        return first;
    *index -= first->count;
    return service->levels[1];
}

struct endpoint *service_endpoint(const struct service *service, uint32_t index)
{
    const struct cluster *cluster = level_of(service, &index);

    return cluster->endpoints[index];
}

uint32_t service_weight(const struct service *service, uint32_t index)
{
    const struct cluster *cluster = level_of(service, &index);

    return cluster->weighing ? cluster->weighing->weights[index] : 1;
}

/* ---- picking ---- */

enum {
    WHOLE = 1000, /* of a load */
    SPARE = 1400, /* what available endpoints bear, if all together bear WHOLE: as Envoy's
                   * "overprovisioning factor" */
};

/* How a service's requests are shared by its levels, as Envoy's priorities are: the first one takes
 * what it can bear, the second one what is left. Where both together do not bear all, each gets its
 * part all the same; of one in which too few are available, all endpoints do. */
struct outlook {
    uint32_t loads[SERVICE_LEVELS];
    bool panics[SERVICE_LEVELS];
    uint32_t endpoints, available;
};

static void look_at(const struct service *service, uint32_t level, uint32_t changes,
                    uint64_t now_ms, struct outlook *outlook)
{
    struct cluster *cluster = service->levels[level];
    uint32_t available = cluster_available(cluster, changes, now_ms);
    uint64_t load = (uint64_t)SPARE * available / cluster->count;

    outlook->loads[level] = load < WHOLE ? (uint32_t)load : WHOLE;
    outlook->panics[level] =
        (uint64_t)available * DP_SHARES < (uint64_t)service->policy.panic_share * cluster->count;
    outlook->endpoints += cluster->count;
    outlook->available += available;
}

static void look(const struct service *service, uint64_t now_ms, struct outlook *outlook)
{
    uint32_t changes = atomic_load_explicit(&service->standing->changes, memory_order_relaxed);
    uint32_t left = WHOLE;

    *outlook = (struct outlook){.endpoints = 0};
    for (uint32_t level = 0; level < SERVICE_LEVELS; level++) {
        if (service->levels[level])
            look_at(service, level, changes, now_ms, outlook);
        if (outlook->loads[level] > left)
            outlook->loads[level] = left;
        left -= outlook->loads[level];
    }
    if (left == 0)
        for (uint32_t level = 0; level < SERVICE_LEVELS; level++)
            outlook->panics[level] = false;
    if (left == WHOLE)
        outlook->loads[service->levels[0] ? 0 : 1] = WHOLE;
}

static uint32_t pick_level(const struct outlook *outlook, uint64_t *random)
{
    uint32_t sum = 0, at;

    for (uint32_t level = 0; level < SERVICE_LEVELS; level++)
        sum += outlook->loads[level];
    if (outlook->loads[0] == sum)
        return 0;
    at = random_below(random, sum);
    return at < outlook->loads[0] ? 0 : 1;
}

static struct search search_of(const struct service *service, const struct pick *pick)
{
    return (struct search){
        .since_ms = pick->since_ms,
        .now_ms = pick->now_ms,
        .random = pick->random,
        .hash = pick->hash,
        .tried = pick->tried,
        .tried_count = pick->tried_count,
        .slow_start_ms = service->policy.slow_start_ms,
    };
}

static void note(const struct service *service, uint32_t level, bool panic, struct pick *pick)
{
    if (panic)
        pick->flags |= 1u << DP_FLAG_PANIC;
    if (level > 0 && service->levels[0])
        pick->flags |= 1u << DP_FLAG_OTHER_ZONE;
}

/* The level that has its turn, then the other; and then those that could not be connected. */
static struct endpoint *pick_of_levels(const struct service *service, const struct outlook *outlook,
                                       struct search *search, struct pick *pick)
{
    uint32_t first = pick_level(outlook, pick->random);

    for (uint32_t i = 0; i < 2 * SERVICE_LEVELS; i++) {
        uint32_t level = (first + i) % SERVICE_LEVELS;
        struct cluster *cluster = service->levels[level];
        struct endpoint *endpoint;

        search->any = outlook->panics[level];
        if (!cluster)
            continue;
        endpoint = i < SERVICE_LEVELS ? cluster_pick_sound(cluster, search)
                                      : cluster_pick_untried(cluster, search);
        if (!endpoint)
            continue;
        note(service, level, search->any, pick);
        return endpoint;
    }
    return NULL;
}

/* Whether there is nothing to look at: one level, and no endpoint was ever not available. */
static bool is_plain(const struct service *service)
{
    return !(service->levels[0] && service->levels[1]) &&
           atomic_load_explicit(&service->standing->changes, memory_order_relaxed) == 0;
}

struct endpoint *service_pick(const struct service *service, struct pick *pick)
{
    struct search search = search_of(service, pick);
    struct endpoint *endpoint;
    struct outlook outlook;

    if (!service->cluster)
        return NULL;
    if (is_plain(service))
        return cluster_pick_untried(service->cluster, &search);
    look(service, pick->now_ms, &outlook);
    if (service->levels[0] && service->levels[1]) {
        endpoint = pick_of_levels(service, &outlook, &search, pick);
    } else {
        search.any = outlook.panics[0] || outlook.panics[1];
        endpoint = cluster_pick_untried(service->cluster, &search);
        if (endpoint)
            note(service, 0, search.any, pick);
    }
    if (!endpoint && outlook.available == 0)
        pick->flags |= 1u << DP_FLAG_UNAVAILABLE;
    return endpoint;
}

void service_pick_clusters(const struct service *service, struct pick *pick,
                           struct tried_cluster clusters[SERVICE_LEVELS])
{
    struct outlook outlook;
    uint32_t first, count = 0;

    memset(clusters, 0, SERVICE_LEVELS * sizeof *clusters);
    if (!service->cluster)
        return;
    look(service, pick->now_ms, &outlook);
    first = pick_level(&outlook, pick->random);
    for (uint32_t i = 0; i < SERVICE_LEVELS; i++) {
        uint32_t level = (first + i) % SERVICE_LEVELS;

        if (!service->levels[level])
            continue;
        clusters[count++] = (struct tried_cluster){service->levels[level], outlook.panics[level]};
    }
}

struct availability service_availability(const struct service *service, uint64_t now_ms)
{
    struct outlook outlook;

    if (!service->cluster)
        return (struct availability){.endpoints = 0};
    look(service, now_ms, &outlook);
    return (struct availability){outlook.endpoints, outlook.available,
                                 outlook.panics[0] || outlook.panics[1]};
}
