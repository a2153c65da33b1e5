/* l7/router.c for tests in Python: a worker that has the newest table, and requests without a
 * codec. */
#include <stdlib.h>
#include <string.h>

#include "l7/router.h"
#include "upstream/routes.h"

enum { MOST_HEADERS = 16 };

struct shim {
    struct worker worker;
    struct tables tables;
    struct router router;
    struct registry registry;
    struct directories directories;
};

struct shim_request {
    const char *service, *group, *version, *method, *path;
    const char *names[16], *values[16];
    uint32_t header_count;
};

/* Texts are in the table that the request was routed by. */
struct shim_routed {
    uint32_t rule, timeout_ms;
    int64_t service; /* its number; -1: none */
    uint64_t hash;
    int rewritten;
    char path[4096]; /* as it was rewritten */
    char host[256];
    uint32_t set_count, remove_count;
};

struct shim *shim_open(void)
{
    struct shim *shim = calloc(1, sizeof *shim);

    registry_init(&shim->registry, -1);
    directories_init(&shim->directories, &shim->registry, 1);
    shim->worker.tables = &shim->tables;
    shim->worker.router = &shim->router;
    return shim;
}

void shim_close(struct shim *shim)
{
    router_close(&shim->router);
    directories_close(&shim->directories);
    registry_close(&shim->registry);
    free(shim);
}

/* `services` is a struct dp_services. Whether it was taken. */
int shim_set(struct shim *shim, uintptr_t services)
{
    struct directory *directory =
        directory_create(&shim->directories, (const struct dp_services *)services);

    if (!directory)
        return 0;
    router_offer(&shim->router, directory);
    directories_set(&shim->directories, directory);
    shim->worker.loop.now_ns++;
    return router_adopt(&shim->worker);
}

static struct text text(const char *text)
{
    return (struct text){text, text ? (uint32_t)strlen(text) : 0};
}

static void copy(char *to, struct text text)
{
    memcpy(to, text.at, text.size);
    to[text.size] = '\0';
}

static void rewrite(const struct rewrite *rewrite, struct text path, struct shim_routed *result)
{
    struct text prefix = rewrite->path_prefix;
    uint32_t replaced = prefix.at ? rewrite->path_prefix_size : 0;

    copy(result->path, prefix.at ? prefix : (struct text){"", 0});
    copy(result->path + strlen(result->path),
         (struct text){path.at + replaced, path.size - replaced});
    copy(result->host, rewrite->host);
    result->set_count = rewrite->set_count;
    result->remove_count = rewrite->remove_count;
}

void shim_route(struct shim *shim, uint32_t scope, uint32_t protocol,
                const struct shim_request *from, struct shim_routed *result)
{
    struct field fields[MOST_HEADERS];
    struct message request = {
        .service = text(from->service),
        .group = text(from->group),
        .version = text(from->version),
        .method = text(from->method),
        .path = text(from->path),
        .fields = fields,
        .field_count = from->header_count,
    };
    struct routed routed;

    for (uint32_t i = 0; i < from->header_count; i++)
        fields[i] = (struct field){text(from->names[i]), text(from->values[i])};
    router_route(&shim->worker, scope, protocol, &request, &routed);
    *result = (struct shim_routed){
        .rule = routed.rule,
        .timeout_ms = routed.timeout_ms,
        .service = routed.service ? (int64_t)routed.service->standing->number : -1,
        .hash = routed.hash,
        .rewritten = routed.rewrite != NULL,
    };
    if (routed.rewrite)
        rewrite(routed.rewrite, request.path, result);
}

/* The protocol, the scope and the service's number of a listener; -1: none. */
void shim_entrance(struct shim *shim, uint32_t listener, uint32_t *protocol, uint32_t *scope,
                   int64_t *service)
{
    struct entrance entrance = router_entrance(&shim->worker, listener);

    *protocol = entrance.protocol;
    *scope = entrance.scope;
    *service = entrance.service ? (int64_t)entrance.service->standing->number : -1;
}

uint64_t shim_generation(struct shim *shim)
{
    return router_generation(&shim->worker);
}
