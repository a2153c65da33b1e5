/* Where connections may go: one struct for each address, whichever routes name it, for as long as
 * one of them does or a connection goes there. So counts and failures outlive route tables. */
#ifndef PYSIDECAR_UPSTREAM_ENDPOINT_H
#define PYSIDECAR_UPSTREAM_ENDPOINT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/map.h"
#include "contract.h"

struct tally;

struct endpoint {
    struct map_entry entry;
    struct mosnhook_address address;
    uint32_t scope;
    uint32_t references;        /* of clusters; the control thread's */
    _Atomic uint64_t failed_ms; /* when a connect failed last; 0: one succeeded since then */
    atomic_uint active; /* connections, or of a service's endpoint requests, that have it now */
    /* Of a service's endpoint: */
    atomic_bool unhealthy;             /* as health checks say */
    _Atomic uint64_t ejected_until_ms; /* see upstream/outliers.h; may be over */
    _Atomic uint64_t since_ms;   /* when it came, or was healthy again; 0: it has been there long */
    _Atomic uint64_t latency;    /* see upstream/latency.h */
    atomic_uint errors;          /* requests in a row that failed by its fault */
    atomic_uint ejections;       /* how often it was ejected lately */
    _Atomic uint64_t generation; /* the newest table that names it, see router_generation */
    uint32_t workers;            /* that count its requests; 0: it is a route's */
    _Atomic(struct tally *) tallies; /* see endpoint_tallies */
};

/* The endpoint with that address, with one more reference; NULL when out of memory. In another
 * scope (the number of a table, see dp_set_routes) it is another one: inbound connections have
 * other marks and sources than outbound ones, so that what one of them finds says little of what
 * the other would. */
struct endpoint *endpoint_intern(struct map *endpoints, uint32_t scope,
                                 const struct mosnhook_address *address);
/* The same without a reference; NULL: there is none. */
struct endpoint *endpoint_find(const struct map *endpoints, uint32_t scope,
                               const struct mosnhook_address *address);
void endpoint_release(struct map *endpoints, struct endpoint *endpoint);

/* What is counted of it, by worker; NULL: nothing was. */
struct tally *endpoint_tallies(struct endpoint *endpoint);
/* Of one worker, to count; made for the first request, since of very many endpoints most never get
 * one. NULL: it is a route's, or memory was short at that time. */
struct tally *endpoint_tally(struct endpoint *endpoint, unsigned worker);

/* Those whose last connect failed after `since_ms` are passed over while there are others. */
bool endpoint_is_ejected(const struct endpoint *endpoint, uint64_t since_ms);
/* Those that are not get no requests, unless it is panic: see service_pick. */
bool endpoint_is_available(const struct endpoint *endpoint, uint64_t now_ms);
/* What became of a connect, by the endpoint's doing. NULL is allowed. A success makes up for what
 * failed before `until_ms`. */
void endpoint_failed(struct endpoint *endpoint, uint64_t now_ms);
void endpoint_succeeded(struct endpoint *endpoint, uint64_t until_ms);

#endif
