/* Which endpoint a hash belongs to, by Maglev's table (Eisenbud et al., "Maglev: A Fast and
 * Reliable Software Network Load Balancer", NSDI 2016, 3.4): each endpoint takes slots in an order
 * that depends on nothing but its address, in turns by weight. So all have the same number of
 * slots, but for one, and when one leaves, its slots are shared by the others, while few of theirs
 * move. */
#ifndef PYSIDECAR_UPSTREAM_MAGLEV_H
#define PYSIDECAR_UPSTREAM_MAGLEV_H

#include "base/terms.h"

struct maglev {
    uint32_t size;    /* a prime */
    uint32_t slots[]; /* indices of endpoints */
};

/* NULL when out of memory. At least one endpoint. */
struct maglev *maglev_create(const struct dp_endpoint *endpoints, uint32_t count);
void maglev_free(struct maglev *maglev); /* NULL is allowed */

/* The endpoint for a hash; with another `attempt`, likely another one, for the same hash always the
 * same. */
uint32_t maglev_at(const struct maglev *maglev, uint64_t hash, uint32_t attempt);

#endif
