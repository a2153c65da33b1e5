#include "upstream/service.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

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
    *standings = (struct standings){.first = NULL};
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

static struct standing *standing_intern(struct standings *standings,
                                        const struct service_plan *plan)
{
    uint64_t hash = random_mix(plan->settings->number);
    char name[DP_SERVICE_BYTES];

    for (struct map_entry *entry = map_first(&standings->map, hash); entry;
         entry = map_next(entry)) {
        struct standing *standing = OWNER(entry, struct standing, entry);

        if (standing->number != plan->settings->number)
            continue;
        name_of(plan, name);
        if (memcmp(name, standing->name, sizeof name) == 0)
            return standing;
        errno = EINVAL;
        return NULL;
    }
    return standing_create(standings, plan, hash);
}

void standings_close(struct standings *standings)
{
    while (standings->first)
        standing_free(standings->first);
    map_close(&standings->map);
    slab_close(&standings->tallies);
}

/* ---- services ---- */

static struct cluster_plan cluster_of(const struct service_plan *plan)
{
    return (struct cluster_plan){
        .key = plan->settings->number,
        .scope = FIRST_SCOPE + plan->settings->number,
        .balance = plan->settings->balance,
        .count = plan->settings->endpoint_count,
        .weighted = plan->endpoints,
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

static bool service_is(const struct service *service, const struct service_plan *plan)
{
    const struct dp_service *settings = plan->settings;
    struct cluster_plan cluster = cluster_of(plan);
    struct dp_resilience resilience = resilience_of(plan);

    return memcmp(&service->resilience, &resilience, sizeof resilience) == 0 &&
           service->protocol == settings->protocol && service->role == settings->role &&
           service->timeout_ms == settings->timeout_ms &&
           service->silent_ms == settings->silent_ms && service->idle_ms == settings->idle_ms &&
           service->connections == settings->connections && service->pending == settings->pending &&
           service->await_ms == settings->await_ms && text_equal(service->name, plan->name) &&
           text_equal(service->hash_by, plan->hash_by) &&
           (service->cluster ? cluster_is(service->cluster, &cluster) : cluster.count == 0);
}

static void service_destroy(struct shared *shared)
{
    struct service *service = OWNER(shared, struct service, shared);
    struct standing *standing = service->standing;

    if (standing->newest == service)
        standing->newest = NULL;
    if (service->cluster)
        keeper_release(&service->cluster->shared);
    standing->services--;
    standing_leave(standing, service->role);
    free(service);
}

/* False when out of memory. */
static bool set_endpoints(struct service *service, struct registry *registry, struct slab *tallies,
                          const struct service_plan *plan)
{
    struct cluster_plan cluster = cluster_of(plan);

    if (cluster.count == 0)
        return true;
    service->cluster = cluster_intern(registry, &cluster);
    for (uint32_t i = 0; service->cluster && i < cluster.count; i++) {
        struct endpoint *endpoint = service->cluster->endpoints[i];

        endpoint->slab = tallies;
        if (!endpoint->tallies)
            endpoint->tallies = slab_take(tallies);
        if (!endpoint->tallies)
            return false;
    }
    return service->cluster != NULL;
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
                                      struct slab *tallies, const struct service_plan *plan)
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
    texts = service->texts;
    service->name = copy(&texts, plan->name);
    service->hash_by = copy(&texts, plan->hash_by);
    if (set_endpoints(service, registry, tallies, plan))
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
    service = service_create(registry, standing, &standings->tallies, plan);
    if (!service) {
        errno = ENOMEM;
        return NULL;
    }
    standing->newest = service;
    return service;
}

/* ---- picking ---- */

struct endpoint *service_pick(const struct service *service, uint64_t hash, uint64_t since_ms,
                              struct endpoint *const *tried, uint32_t tried_count, uint64_t *random)
{
    struct search search = {since_ms, random, hash, tried, tried_count};

    return service->cluster ? cluster_pick_untried(service->cluster, &search) : NULL;
}
