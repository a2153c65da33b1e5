/* An address that connections go to: one struct for all routes that name it, for as long as a route
 * does or a connection goes there. So counts and failures outlive route tables. */
#ifndef PYSIDECAR_UPSTREAM_ENDPOINT_H
#define PYSIDECAR_UPSTREAM_ENDPOINT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/map.h"
#include "contract.h"

struct endpoint {
    struct map_entry entry;
    struct mosnhook_address address;
    uint32_t scope;
    uint32_t references;        /* by clusters; the control thread's */
    _Atomic uint64_t failed_ms; /* when a connect failed last; 0 if one has succeeded since then */
    atomic_uint active;         /* connections that it has now */
};

/* The endpoint with that address, with one more reference; NULL when out of memory. Each scope (the
 * number of a table, see dp_set_routes) has its own: inbound and outbound connections differ in
 * mark and source, so what one of them finds says little about the other. */
struct endpoint *endpoint_intern(struct map *endpoints, uint32_t scope,
                                 const struct mosnhook_address *address);
void endpoint_release(struct map *endpoints, struct endpoint *endpoint);

/* Whether its last connect failed after `since_ms`. */
bool endpoint_is_ejected(const struct endpoint *endpoint, uint64_t since_ms);
/* Note what became of a connect by the endpoint's doing. NULL is allowed. A success ends an
 * ejection whose failure was before `until_ms`. */
void endpoint_failed(struct endpoint *endpoint, uint64_t now_ms);
void endpoint_succeeded(struct endpoint *endpoint, uint64_t until_ms);

#endif
