#include "l7/router.h"

#include <errno.h>
#include <stdlib.h>

#include "base/owner.h"
#include "l7/message.h"
#include "base/random.h"
#include "upstream/routes.h"

/* ---- consistency ---- */

/* Whether `count` from `first` on are among `all`. */
static bool is_within(uint32_t first, uint32_t count, uint32_t all)
{
    return first <= all && count <= all - first;
}

static bool texts_are_consistent(const struct dp_services *from)
{
    if (from->text_count == 0 || from->texts[0].size > 0)
        return false;
    for (uint32_t i = 0; i < from->text_count; i++)
        if (!is_within(from->texts[i].first, from->texts[i].size, from->character_count))
            return false;
    return true;
}

static bool endpoints_are_consistent(const struct dp_endpoint *endpoints, uint32_t count)
{
    for (uint32_t i = 0, level = 0; i < count; level = endpoints[i++].level)
        if (endpoints[i].weight == 0 || endpoints[i].level < level ||
            endpoints[i].level >= SERVICE_LEVELS)
            return false;
    return true;
}

static bool service_is_consistent(const struct dp_service *service, const struct dp_services *from)
{
    if (service->number >= DP_NO_SERVICE || service->name >= from->text_count ||
        service->hash_by >= from->text_count || service->protocol >= DP_AUTO ||
        service->balance > DP_PEAK_EWMA || service->balance == DP_LEAST_CONNECTIONS ||
        service->role >= DP_ROLES || service->resilience > from->resilience_count ||
        !is_within(service->first_endpoint, service->endpoint_count, from->endpoint_count))
        return false;
    return endpoints_are_consistent(&from->endpoints[service->first_endpoint],
                                    service->endpoint_count);
}

static bool resilience_is_consistent(const struct dp_resilience *resilience,
                                     const struct dp_services *from)
{
    return resilience->budget <= DP_SHARES && resilience->mirror_share <= DP_SHARES &&
           (resilience->mirror_share == 0 || resilience->mirror < from->service_count) &&
           (resilience->rate_requests == 0 ||
            (resilience->rate_ms > 0 && resilience->rate_burst > 0));
}

static bool handling_is_consistent(const struct dp_handling *handling)
{
    return handling->delay_share <= DP_SHARES && handling->abort_share <= DP_SHARES &&
           handling->abort_status < DP_STATUSES;
}

static bool predicate_is_consistent(const struct dp_predicate *predicate,
                                    const struct dp_services *from)
{
    return predicate->subject <= DP_SUBJECT_NAME_HEADER && predicate->pattern <= DP_PATTERN_ANY &&
           (predicate->pattern != DP_PATTERN_ANY || predicate->subject == DP_SUBJECT_HEADER) &&
           predicate->name < from->text_count && predicate->value < from->text_count;
}

static bool is_target(uint32_t service, const struct dp_services *from)
{
    return service < from->service_count || service == DP_NO_SERVICE;
}

static bool targets_are_consistent(const struct dp_rule *rule, const struct dp_services *from)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < rule->target_count; i++) {
        const struct dp_target *target = &from->targets[rule->first_target + i];

        if (!is_target(target->service, from) || target->weight == 0)
            return false;
        sum += target->weight;
    }
    return sum > 0 && sum <= UINT32_MAX;
}

static bool headers_are_consistent(uint32_t first, uint32_t count, const struct dp_services *from)
{
    if (!is_within(first, count, from->header_count))
        return false;
    for (uint32_t i = first; i < first + count; i++)
        if (from->headers[i].name >= from->text_count || from->headers[i].value >= from->text_count)
            return false;
    return true;
}

static bool rule_is_consistent(const struct dp_rule *rule, const struct dp_services *from)
{
    return rule->handling <= from->handling_count && rule->protocol < DP_PROTOCOLS &&
           rule->scopes > 0 && rule->scopes >> DP_SCOPES == 0 && rule->host < from->text_count &&
           rule->path_prefix < from->text_count && rule->original_destination < from->text_count &&
           targets_are_consistent(rule, from) &&
           headers_are_consistent(rule->first_set, rule->set_count, from) &&
           headers_are_consistent(rule->first_remove, rule->remove_count, from);
}

/* The predicates and targets of each rule follow those of the rule before. */
static bool rules_are_consistent(const struct dp_services *from)
{
    uint32_t predicates = 0, targets = 0;

    for (uint32_t i = 0; i < from->rule_count; i++) {
        const struct dp_rule *rule = &from->rules[i];

        if (rule->first_predicate != predicates || rule->first_target != targets ||
            !is_within(predicates, rule->predicate_count, from->predicate_count) ||
            !is_within(targets, rule->target_count, from->target_count) ||
            !rule_is_consistent(rule, from))
            return false;
        predicates += rule->predicate_count;
        targets += rule->target_count;
    }
    for (uint32_t i = 0; i < from->predicate_count; i++)
        if (!predicate_is_consistent(&from->predicates[i], from))
            return false;
    return true;
}

static bool extras_are_consistent(const struct dp_services *from)
{
    for (uint32_t i = 0; i < from->resilience_count; i++)
        if (!resilience_is_consistent(&from->resiliences[i], from))
            return false;
    for (uint32_t i = 0; i < from->handling_count; i++)
        if (!handling_is_consistent(&from->handlings[i]))
            return false;
    return true;
}

static bool is_consistent(const struct dp_services *from)
{
    if (!texts_are_consistent(from) || !rules_are_consistent(from) || !extras_are_consistent(from))
        return false;
    for (uint32_t i = 0; i < from->service_count; i++)
        if (!service_is_consistent(&from->services[i], from))
            return false;
    for (uint32_t i = 0; i < from->entrance_count; i++)
        if (from->entrances[i].protocol > DP_AUTO || from->entrances[i].undetected > DP_REFUSE ||
            from->entrances[i].scope >= DP_SCOPES ||
            from->entrances[i].name_header >= from->text_count ||
            !is_target(from->entrances[i].service, from))
            return false;
    return true;
}

/* ---- making ---- */

static void directory_destroy(struct shared *shared)
{
    struct directory *directory = OWNER(shared, struct directory, shared);

    for (uint32_t i = 0; i < directory->service_count; i++)
        keeper_release(&directory->services[i]->shared);
    rulebook_free(&directory->rules);
    free(directory->services);
    free(directory->entrances);
    free(directory->destinations);
    free(directory->targets);
    free(directory->handlings);
    free(directory->characters);
    free(directory);
}

/* At least one, as a count may be 0. */
static void *array(size_t count, size_t size)
{
    return calloc(count + 1, size);
}

static bool make_arrays(struct directory *directory, const struct dp_services *from)
{
    directory->services = array(from->service_count, sizeof(struct service *));
    directory->entrances = array(from->entrance_count, sizeof *directory->entrances);
    directory->destinations = array(from->rule_count, sizeof *directory->destinations);
    directory->targets = array(from->target_count, sizeof *directory->targets);
    directory->handlings = array(from->handling_count, sizeof *directory->handlings);
    directory->characters = array(from->character_count, 1);
    return directory->services && directory->entrances && directory->destinations &&
           directory->targets && directory->handlings && directory->characters;
}

/* 0 or -errno. */
static int add_service(struct directory *directory, struct directories *directories,
                       const struct dp_services *from, const struct dp_service *settings)
{
    struct service_plan plan = {
        .settings = settings,
        .name = text_of(from, from->characters, settings->name),
        .hash_by = text_of(from, from->characters, settings->hash_by),
        .endpoints = &from->endpoints[settings->first_endpoint],
        .resilience = settings->resilience ? &from->resiliences[settings->resilience - 1] : NULL,
    };
    struct service *service = service_intern(directories->registry, &directories->standings, &plan);

    if (!service)
        return -errno;
    directory->services[directory->service_count++] = service;
    /* Two services with one number would share their endpoints, but not their balance. */
    if (service->standing->listed == directories->tries)
        return -EINVAL;
    service->standing->listed = directories->tries;
    return 0;
}

static struct service *service_at(const struct directory *directory, uint32_t index)
{
    return index == DP_NO_SERVICE ? NULL : directory->services[index];
}

/* Where copies of its requests go; NULL: nowhere. */
static struct service *mirror_at(const struct directory *directory, const struct dp_services *from,
                                 uint32_t index)
{
    uint32_t number = index == DP_NO_SERVICE ? 0 : from->services[index].resilience;
    const struct dp_resilience *resilience = number ? &from->resiliences[number - 1] : NULL;

    if (!resilience || resilience->mirror_share == 0)
        return NULL;
    return directory->services[resilience->mirror];
}

static void add_destination(struct directory *directory, const struct dp_services *from,
                            uint32_t rule)
{
    const struct dp_rule *settings = &from->rules[rule];
    uint32_t sum = 0;

    directory->destinations[rule] = (struct destination){
        settings->first_target,
        settings->target_count,
        settings->timeout_ms,
        settings->handling ? &directory->handlings[settings->handling - 1] : NULL,
    };
    for (uint32_t i = settings->first_target; i < settings->first_target + settings->target_count;
         i++) {
        sum += from->targets[i].weight;
        directory->targets[i] =
            (struct target){service_at(directory, from->targets[i].service),
                            mirror_at(directory, from, from->targets[i].service), sum};
    }
}

static void add_entrance(struct directory *directory, const struct dp_services *from,
                         const struct dp_entrance *settings)
{
    directory->entrances[directory->entrance_count++] = (struct entrance){
        settings->protocol,
        settings->detect_ms,
        settings->undetected,
        service_at(directory, settings->service),
        settings->scope,
        settings->on_demand_ms,
        text_of(from, directory->characters, settings->name_header),
        mirror_at(directory, from, settings->service),
    };
}

/* Only when nothing can fail any more: else an endpoint would have a number that another table gets
 * again. */
static void mark_services(const struct directory *directory)
{
    for (uint32_t i = 0; i < directory->service_count; i++) {
        struct service *service = directory->services[i];

        atomic_store_explicit(&service->generation, directory->generation, memory_order_relaxed);
        atomic_store_explicit(&service->standing->place, i, memory_order_relaxed);
        for (uint32_t k = 0; k < service_endpoint_count(service); k++)
            atomic_store_explicit(&service_endpoint(service, k)->generation, directory->generation,
                                  memory_order_relaxed);
    }
}

/* 0 or -errno. */
static int fill(struct directory *directory, struct directories *directories,
                const struct dp_services *from)
{
    int result = make_arrays(directory, from) ? 0 : -ENOMEM;

    if (result == 0 && from->character_count)
        memcpy(directory->characters, from->characters, from->character_count);
    if (result == 0 && from->handling_count)
        memcpy(directory->handlings, from->handlings,
               from->handling_count * sizeof *from->handlings);
    for (uint32_t i = 0; i < from->service_count && result == 0; i++)
        result = add_service(directory, directories, from, &from->services[i]);
    if (result < 0)
        return result;
    for (uint32_t i = 0; i < from->rule_count; i++)
        add_destination(directory, from, i);
    for (uint32_t i = 0; i < from->entrance_count; i++)
        add_entrance(directory, from, &from->entrances[i]);
    return rulebook_create(&directory->rules, from, directory->characters) ? 0 : -ENOMEM;
}

struct directory *directory_create(struct directories *directories, const struct dp_services *from)
{
    struct directory *directory;
    int result;

    if (!is_consistent(from)) {
        errno = EINVAL;
        return NULL;
    }
    directory = calloc(1, sizeof *directory);
    if (!directory)
        return NULL;
    shared_init(&directory->shared, &directories->registry->keeper, directory_destroy);
    directory->generation = directories->newest ? directories->newest->generation + 1 : 1;
    directories->tries++;
    result = fill(directory, directories, from);
    if (result < 0) {
        keeper_release(&directory->shared);
        errno = -result;
        return NULL;
    }
    mark_services(directory);
    return directory;
}

/* ---- tables, and who has them ---- */

void directories_init(struct directories *directories, struct registry *registry, uint32_t workers)
{
    *directories = (struct directories){.registry = registry};
    standings_init(&directories->standings, workers);
}

static void drop(struct directory *directory)
{
    if (directory)
        keeper_release(&directory->shared);
}

void directories_close(struct directories *directories)
{
    drop(directories->newest);
    keeper_collect(&directories->registry->keeper);
    standings_close(&directories->standings);
}

void directories_set(struct directories *directories, struct directory *directory)
{
    drop(directories->newest);
    directories->newest = directory;
}

void router_offer(struct router *router, struct directory *directory)
{
    shared_reference(&directory->shared);
    drop(atomic_exchange_explicit(&router->newest, directory, memory_order_acq_rel));
}

bool router_adopt(struct worker *worker)
{
    struct router *router = worker->router;
    struct directory *newest;

    if (!atomic_load_explicit(&router->newest, memory_order_relaxed))
        return true;
    if (router->current && router->used_ns == worker->loop.now_ns)
        return false;
    newest = atomic_exchange_explicit(&router->newest, NULL, memory_order_acq_rel);
    if (!newest)
        return true;
    if (router->current)
        shared_release(&router->current->shared);
    router->current = newest;
    trace(worker, 0, services_adopted, newest->generation, newest->service_count);
    return true;
}

void router_close(struct router *router)
{
    drop(router->current);
    drop(atomic_exchange(&router->newest, NULL));
    router->current = NULL;
}

/* ---- requests ---- */

/* The worker's newest table; NULL: none was set. */
static const struct directory *current(struct worker *worker)
{
    (void)router_adopt(worker);
    worker->router->used_ns = worker->loop.now_ns;
    return worker->router->current;
}

static const struct target *choose(const struct directory *directory,
                                   const struct destination *destination, uint64_t *random)
{
    const struct target *target = &directory->targets[destination->first_target];
    uint32_t count = destination->target_count, at;

    if (count == 1)
        return target;
    at = random_below(random, target[count - 1].up_to);
    while (at >= target->up_to)
        target++;
    return target;
}

static uint64_t hash_text(struct text text)
{
    uint64_t hash = text.size;

    for (uint32_t i = 0; i < text.size; i++)
        hash = (hash ^ (uint8_t)text.at[i]) * UINT64_C(0x100000001b3);
    return random_mix(hash);
}

/* Requests without the header go anywhere. */
static uint64_t hash_request(const struct service *service, const struct message *request,
                             uint64_t *random)
{
    if (service->hash_by.size == 0)
        return 0;
    for (uint32_t i = 0; i < request->field_count; i++)
        if (text_equal_folded(request->fields[i].name, service->hash_by))
            return hash_text(request->fields[i].value);
    return random_next(random);
}

/* What follows from its service, if it has one. */
static void complete(struct routed *routed, const struct message *request, uint64_t *random)
{
    if (!routed->service)
        return;
    if (routed->timeout_ms == 0)
        routed->timeout_ms = routed->service->timeout_ms;
    routed->hash = hash_request(routed->service, request, random);
}

void router_route(struct worker *worker, enum dp_scope scope, enum dp_protocol protocol,
                  const struct message *request, struct routed *routed)
{
    const struct directory *directory = current(worker);
    uint64_t *random = &worker->tables->random;
    const struct destination *destination;
    const struct target *target;
    struct matched matched;

    *routed = (struct routed){.rule = NO_RULE};
    if (!directory)
        return;
    matched = rulebook_match(&directory->rules, scope, protocol_family(protocol), request);
    if (matched.rule == NO_RULE)
        return;
    destination = &directory->destinations[matched.rule];
    routed->rule = matched.rule;
    routed->rewrite = matched.rewrite;
    target = choose(directory, destination, random);
    routed->service = target->service;
    routed->mirror = target->mirror;
    routed->timeout_ms = destination->timeout_ms;
    routed->handling = destination->handling;
    complete(routed, request, random);
}

void router_route_at(struct worker *worker, uint32_t listener, enum dp_protocol protocol,
                     const struct message *request, struct routed *routed)
{
    struct entrance entrance = router_entrance(worker, listener);

    if (!entrance.service) {
        router_route(worker, entrance.scope, protocol, request, routed);
        return;
    }
    *routed = (struct routed){.rule = NO_RULE};
    if (protocol_family(entrance.service->protocol) == protocol_family(protocol)) {
        routed->service = entrance.service;
        routed->mirror = entrance.mirror;
    }
    complete(routed, request, &worker->tables->random);
}

struct entrance router_entrance(struct worker *worker, uint32_t listener)
{
    const struct directory *directory = current(worker);

    if (!directory || listener >= directory->entrance_count)
        return (struct entrance){.protocol = DP_TCP};
    return directory->entrances[listener];
}

uint64_t router_generation(struct worker *worker)
{
    const struct directory *directory = current(worker);

    return directory ? directory->generation : 0;
}

struct service *router_successor(struct worker *worker, struct service *service)
{
    const struct directory *directory = current(worker);
    uint32_t place = atomic_load_explicit(&service->standing->place, memory_order_relaxed);

    if (!directory ||
        atomic_load_explicit(&service->generation, memory_order_relaxed) >= directory->generation)
        return service;
    if (place < directory->service_count &&
        directory->services[place]->standing == service->standing)
        return directory->services[place];
    for (uint32_t i = 0; i < directory->service_count; i++)
        if (directory->services[i]->standing == service->standing)
            return directory->services[i];
    return NULL;
}
