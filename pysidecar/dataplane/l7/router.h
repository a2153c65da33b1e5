/* Where each request goes: the services, and the rules that choose one of them, in one immutable
 * table. The control thread sets it, a worker finds the newest. */
#ifndef PYSIDECAR_L7_ROUTER_H
#define PYSIDECAR_L7_ROUTER_H

#include "l7/codec.h"
#include "l7/rulebook.h"
#include "loop/worker.h"
#include "upstream/service.h"

/* Where a request goes. Valid until the worker's next turn, in which another table may be adopted;
 * the service longer, if it is referenced. */
struct routed {
    struct service *service; /* NULL: no rule matches, or it names a service that is not there */
    uint32_t rule;           /* its index; UINT32_MAX: none matches */
    uint32_t timeout_ms;     /* the rule's, else the service's; 0: none */
    uint64_t hash;           /* for service_pick */
    const struct rewrite *rewrite;      /* NULL: none */
    struct service *mirror;             /* as `service`: gets copies of some requests; NULL: none */
    const struct dp_handling *handling; /* NULL: none */
};

/* What a listener of services says. */
struct entrance {
    enum dp_protocol protocol;
    uint32_t detect_ms, undetected; /* as in struct dp_route */
    struct service *service;        /* NULL: by the rules of the scope */
    enum dp_scope scope;
    uint32_t on_demand_ms;   /* as in struct dp_entrance */
    struct text name_header; /* likewise; valid until the worker's next turn */
    struct service *mirror;  /* of the service; NULL: none */
};

/* By the first rule of the scope that matches a request of that protocol. */
void router_route(struct worker *worker, enum dp_scope scope, enum dp_protocol protocol,
                  const struct message *request, struct routed *routed);
/* At a listener: to its service, or by the rules. A service that speaks another protocol, as it may
 * after a change, gets no request. */
void router_route_at(struct worker *worker, uint32_t listener, enum dp_protocol protocol,
                     const struct message *request, struct routed *routed);
/* Of a listener, by its number. One that the table does not know has the protocol DP_TCP, and no
 * service. */
struct entrance router_entrance(struct worker *worker, uint32_t listener);
/* The number of the worker's table: goes up by one with each. */
uint64_t router_generation(struct worker *worker);
/* What the service is in the worker's table: itself, what it was changed to, or NULL: it is gone.
 */
struct service *router_successor(struct worker *worker, struct service *service);

/* ---- what the control thread sets ---- */

struct target {
    struct service *service; /* NULL: it is not there */
    struct service *mirror;  /* of the service; NULL: none */
    uint32_t up_to;          /* of the sum of weights: its own and those before */
};

/* The targets of a rule, and what else it says. */
struct destination {
    uint32_t first_target, target_count;
    uint32_t timeout_ms;
    const struct dp_handling *handling; /* NULL: none */
};

/* The table. Immutable. Referenced by workers. */
struct directory {
    struct shared shared;
    uint64_t generation;
    struct service **services; /* each referenced once */
    struct entrance *entrances;
    struct destination *destinations; /* by rule */
    struct target *targets;
    struct dp_handling *handlings;
    char *characters; /* of all texts but those of the services */
    struct rulebook rules;
    uint32_t service_count, entrance_count;
};

/* The control thread's. */
struct directories {
    struct registry *registry;
    struct standings standings;
    struct directory *newest; /* NULL: none was set */
    uint64_t tries;           /* to make one */
};

/* A worker's. */
struct router {
    _Atomic(struct directory *) newest; /* that it has not adopted yet */
    struct directory *current;          /* NULL: none was set */
    uint64_t used_ns;                   /* the turn in which it was asked last; 0: never */
};

/* The registry is closed later. */
void directories_init(struct directories *directories, struct registry *registry, uint32_t workers);
/* When no worker has a table any more, nor a service. */
void directories_close(struct directories *directories);
/* A table with one reference, which is the newest one's successor, or NULL with errno set; EINVAL:
 * it is not consistent. */
struct directory *directory_create(struct directories *directories, const struct dp_services *from);
/* What workers are offered from now on: takes over the reference. */
void directories_set(struct directories *directories, struct directory *directory);

/* Gives the worker, whose thread it need not be, a new table: with one reference more. */
void router_offer(struct router *router, struct directory *directory);
/* Adopts the newest table, so that the old one is freed. False: that was asked in this turn, and
 * may be in use until the next. */
bool router_adopt(struct worker *worker);
void router_close(struct router *router);

#endif
