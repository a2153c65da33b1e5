/* Where each request goes: the services, and the rules that choose one of them, in one immutable
 * table. The control thread sets it, a worker finds the newest. */
#ifndef PYSIDECAR_L7_ROUTER_H
#define PYSIDECAR_L7_ROUTER_H

#include "l7/codec.h"
#include "loop/worker.h"
#include "upstream/service.h"

/* Where a request goes. Valid until the worker's next turn, unless the service is referenced. */
struct routed {
    struct service *service; /* NULL: no rule matches, or it names a service that is not there */
    uint32_t rule;           /* its index; UINT32_MAX: none matches */
    uint32_t timeout_ms;     /* the rule's, else the service's; 0: none */
    uint64_t hash;           /* for service_pick */
    const struct rewrite *rewrite; /* NULL: none */
};

/* What a listener of services says. */
struct entrance {
    enum dp_protocol protocol;
    uint32_t detect_ms, undetected; /* as in struct dp_route */
    struct service *service;        /* NULL: by the rules */
};

/* The first rule that matches a request of that protocol. With `fixed` (of an entrance) no rule is
 * asked. */
void router_route(struct worker *worker, enum dp_protocol protocol, const struct message *request,
                  struct service *fixed, struct routed *routed);
/* Of a listener, by its number. */
struct entrance router_entrance(struct worker *worker, uint32_t listener);
/* The number of the worker's table: goes up by one with each. */
uint64_t router_generation(struct worker *worker);

#endif
