/* A table of services that is written down step by step. For modules of l7/ and above. */
#ifndef UNIT_SERVICES_H
#define UNIT_SERVICES_H

#include <string.h>

#include "l7/router.h"
#include "unit.h"

struct written {
    struct dp_service services[16];
    struct dp_endpoint endpoints[64];
    struct dp_rule rules[64];
    struct dp_predicate predicates[128];
    struct dp_target targets[64];
    struct dp_header headers[16];
    struct dp_entrance entrances[16];
    struct dp_resilience resiliences[16];
    struct dp_handling handlings[16];
    struct dp_text texts[256];
    char characters[8192];
    struct dp_services table;
};

static inline uint32_t written_text(struct written *written, const char *text)
{
    uint32_t size = (uint32_t)strlen(text);

    memcpy(written->characters + written->table.character_count, text, size);
    written->texts[written->table.text_count] =
        (struct dp_text){written->table.character_count, size};
    written->table.character_count += size;
    return written->table.text_count++;
}

static inline void written_begin(struct written *written)
{
    memset(written, 0, sizeof *written);
    written->table = (struct dp_services){
        .services = written->services,
        .endpoints = written->endpoints,
        .rules = written->rules,
        .predicates = written->predicates,
        .targets = written->targets,
        .headers = written->headers,
        .entrances = written->entrances,
        .resiliences = written->resiliences,
        .handlings = written->handlings,
        .texts = written->texts,
        .characters = written->characters,
    };
    written_text(written, "");
}

/* Returns the service, which has no endpoint yet and a number by its place. */
static inline struct dp_service *written_service(struct written *written, const char *name,
                                                 uint32_t protocol)
{
    struct dp_service *service = &written->services[written->table.service_count];

    *service = (struct dp_service){
        .number = written->table.service_count++,
        .name = written_text(written, name),
        .protocol = protocol,
        .timeout_ms = 3000,
        .idle_ms = 60000,
        .connections = 1024,
        .pending = 1024,
        .first_endpoint = written->table.endpoint_count,
    };
    return service;
}

/* Of the last service. */
static inline void written_endpoint(struct written *written, const struct mosnhook_address *address)
{
    written->endpoints[written->table.endpoint_count++] =
        (struct dp_endpoint){.address = *address, .weight = 1};
    written->services[written->table.service_count - 1].endpoint_count++;
}

/* Returns the rule, which matches everything of its protocol. */
static inline struct dp_rule *written_rule(struct written *written, uint32_t protocol)
{
    struct dp_rule *rule = &written->rules[written->table.rule_count++];

    *rule = (struct dp_rule){
        .protocol = protocol,
        .scopes = 1u << DP_SCOPE_OUTBOUND,
        .first_predicate = written->table.predicate_count,
        .first_target = written->table.target_count,
    };
    return rule;
}

/* Of the last rule. */
static inline void written_target(struct written *written, uint32_t service, uint32_t weight)
{
    written->targets[written->table.target_count++] = (struct dp_target){service, weight};
    written->rules[written->table.rule_count - 1].target_count++;
}

/* Of the last rule. An exact value, or if there is a "*" in it, a glob; NULL: any. */
static inline struct dp_predicate *written_predicate(struct written *written, uint32_t subject,
                                                     const char *value)
{
    struct dp_predicate *predicate = &written->predicates[written->table.predicate_count++];

    *predicate = (struct dp_predicate){
        .subject = subject,
        .pattern = !value               ? DP_PATTERN_ANY
                   : strchr(value, '*') ? DP_PATTERN_GLOB
                                        : DP_PATTERN_EXACT,
        .value = value ? written_text(written, value) : 0,
    };
    written->rules[written->table.rule_count - 1].predicate_count++;
    return predicate;
}

#endif
