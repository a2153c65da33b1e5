/* Lookup in a rule blob (see contract.h). Shared by the hook and the data plane. */
#ifndef MOSNHOOK_RULES_H
#define MOSNHOOK_RULES_H

#include <stdbool.h>
#include <stdint.h>

#include "contract.h"

#define MOSNHOOK_NO_RULE UINT32_MAX

static inline int mosnhook_compare_ip(const uint8_t a[16], const uint8_t b[16])
{
    for (int i = 0; i < 16; i++)
        if (a[i] != b[i])
            return a[i] < b[i] ? -1 : 1;
    return 0;
}

/* Whether the blob's counts fit its size and its size fits `capacity` bytes. */
static inline bool mosnhook_rules_fit(const struct mosnhook_rules *rules, uint64_t capacity)
{
    uint64_t needed = sizeof *rules +
                      (uint64_t)rules->boundary_count * sizeof(struct mosnhook_boundary) +
                      (uint64_t)rules->prefix_count * sizeof(struct mosnhook_prefix) +
                      (uint64_t)rules->segment_count * sizeof(struct mosnhook_segment);

    return needed <= rules->size && rules->size <= capacity;
}

/* The rule of `prefix` itself that matches the port, or MOSNHOOK_NO_RULE. */
static inline uint32_t mosnhook_match_port(const struct mosnhook_segment *segments, uint32_t count,
                                           uint16_t port)
{
    uint32_t low = 0, high = count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (segments[middle].last_port < port)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < count && segments[low].first_port <= port)
        return segments[low].rule;
    return MOSNHOOK_NO_RULE;
}

/* The first rule in file order that matches, or MOSNHOOK_NO_RULE.
 *
 * Safe on a blob that is being rewritten (the caller finds that out by its seqlock): `rules` must
 * be a private copy of the header that mosnhook_rules_fit approved, `arrays` what follows it in the
 * blob; every index is checked and parents must descend, so the walk always ends. */
static inline uint32_t mosnhook_match(const struct mosnhook_rules *rules, const void *arrays,
                                      const struct mosnhook_address *address)
{
    const struct mosnhook_boundary *boundaries = arrays;
    const struct mosnhook_prefix *prefixes = (const void *)(boundaries + rules->boundary_count);
    const struct mosnhook_segment *segments = (const void *)(prefixes + rules->prefix_count);
    uint32_t low = 0, high = rules->boundary_count, best = MOSNHOOK_NO_RULE;
    int64_t limit = rules->prefix_count;

    while (low < high) { /* the number of boundaries that start at or before the address */
        uint32_t middle = low + (high - low) / 2;

        if (mosnhook_compare_ip(boundaries[middle].start, address->ip) <= 0)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return MOSNHOOK_NO_RULE;
    for (int64_t at = boundaries[low - 1].prefix; at >= 0 && at < limit;) {
        uint32_t first = prefixes[at].first_segment, count = prefixes[at].segment_count, rule;

        if (first > rules->segment_count || count > rules->segment_count - first)
            break;
        rule = mosnhook_match_port(segments + first, count, address->port);
        if (rule < best)
            best = rule;
        limit = at;
        at = prefixes[at].parent;
    }
    return best;
}

#endif
