/* How often each of a service's endpoints has its turn, and which of them a hash belongs to. */
#ifndef PYSIDECAR_UPSTREAM_WEIGHING_H
#define PYSIDECAR_UPSTREAM_WEIGHING_H

#include "base/places.h"
#include "base/terms.h"

struct weighing {
    /* Indices of endpoints. Of a ring: where each endpoint's points are, which depends on nothing
     * but its address and weight, so that a change of others moves few hashes. Else: each as often
     * as it weighs, and spread out evenly. */
    struct places places;
    bool ring;
    uint32_t count;
    uint32_t weights[]; /* as given */
};

/* NULL when out of memory. */
struct weighing *weighing_create(const struct dp_endpoint *endpoints, uint32_t count, bool ring);
void weighing_free(struct weighing *weighing); /* NULL is allowed */
/* Whether there is anything to weigh. */
bool weights_differ(const struct dp_endpoint *endpoints, uint32_t count);
/* A number that depends on nothing but the address. */
uint64_t address_hash(const struct mosnhook_address *address);
bool weighing_is(const struct weighing *weighing, const struct dp_endpoint *endpoints,
                 uint32_t count, bool ring);

#endif
