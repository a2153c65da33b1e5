#include "unit.h"

#include <errno.h>
#include <stdio.h>

#include "routed.h"
#include "services.h"

static struct routed_worker routed_worker;
static struct worker *const worker = &routed_worker.worker;
static struct directories directories;
static struct router router;
static struct written written;
static struct field fields[8];
static struct message request;
static struct routed found;

static int set_up(void **state)
{
    (void)state;
    routed_open(&routed_worker);
    directories_init(&directories, &routed_worker.routes.registry, 1);
    router = (struct router){.current = NULL};
    worker->router = &router;
    worker->loop.now_ns = 1;
    written_begin(&written);
    request = (struct message){.fields = fields};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    router_close(&router);
    directories_close(&directories);
    routed_close(&routed_worker);
    return 0;
}

static int offer(void)
{
    struct directory *directory = directory_create(&directories, &written.table);

    if (!directory)
        return -errno;
    router_offer(&router, directory);
    directories_set(&directories, directory);
    worker->loop.now_ns++;
    return 0;
}

static struct text text(const char *text)
{
    return (struct text){text, (uint32_t)strlen(text)};
}

/* The number of the rule for a request. */
static uint32_t route(uint32_t protocol)
{
    router_route(worker, DP_SCOPE_OUTBOUND, protocol, &request, &found);
    return found.rule;
}

static uint32_t route_http(const char *host, const char *path)
{
    request.service = text(host);
    request.path = text(path);
    request.method = TEXT("GET");
    return route(DP_HTTP1);
}

/* A rule to the only service. */
static struct dp_rule *rule(uint32_t protocol)
{
    struct dp_rule *rule = written_rule(&written, protocol);

    if (written.table.service_count == 0)
        written_service(&written, "orders", protocol);
    written_target(&written, 0, 1);
    return rule;
}

static void rule_with(uint32_t protocol, uint32_t subject, const char *value)
{
    rule(protocol);
    written_predicate(&written, subject, value);
}

static void test_without_a_table_nothing_is_found(void **state)
{
    struct entrance entrance = router_entrance(worker, 0);

    (void)state;
    assert_int_equal(route_http("a", "/"), NO_RULE);
    assert_null(found.service);
    assert_int_equal(router_generation(worker), 0);
    assert_int_equal(entrance.protocol, DP_TCP);
    assert_null(entrance.service);
}

static void test_hosts(void **state)
{
    (void)state;
    rule_with(DP_HTTP1, DP_SUBJECT_HOST, "Orders.Example.com");
    rule_with(DP_HTTP1, DP_SUBJECT_HOST, "orders.*");
    rule_with(DP_HTTP1, DP_SUBJECT_HOST, "*.example.com");
    rule_with(DP_HTTP1, DP_SUBJECT_HOST, "a*z");
    rule_with(DP_HTTP1, DP_SUBJECT_HOST, "*.*.one");
    assert_int_equal(offer(), 0);
    assert_int_equal(route_http("orders.example.COM", "/"), 0);
    assert_int_equal(route_http("ORDERS.example.org", "/"), 1);
    assert_int_equal(route_http("orders.", "/"), 1);
    assert_int_equal(route_http("orders", "/"), NO_RULE);
    assert_int_equal(route_http("a.b.example.com", "/"), 2);
    assert_int_equal(route_http("example.com", "/"), NO_RULE);
    assert_int_equal(route_http("az", "/"), 3);
    assert_int_equal(route_http("a.z.z", "/"), 3);
    assert_int_equal(route_http("a.b.one", "/"), 4);
    assert_int_equal(route_http("b.one", "/"), NO_RULE);
    assert_int_equal(route_http("", "/"), NO_RULE);
}

/* However they are found: by a hash, or one after the other. */
static void test_the_first_one_counts(void **state)
{
    (void)state;
    rule_with(DP_HTTP1, DP_SUBJECT_HOST, "nobody");
    rule_with(DP_HTTP1, DP_SUBJECT_HOST, "a*.b.c");
    rule_with(DP_HTTP1, DP_SUBJECT_HOST, "*.b.c");
    written_predicate(&written, DP_SUBJECT_HOST, "other")->alternative = 1;
    rule_with(DP_HTTP1, DP_SUBJECT_HOST, "x.b.c");
    rule_with(DP_HTTP1, DP_SUBJECT_PATH_PREFIX, "/late");
    rule_with(DP_HTTP1, DP_SUBJECT_HOST, "y");
    rule(DP_HTTP1);
    rule_with(DP_HTTP1, DP_SUBJECT_HOST, "z");
    assert_int_equal(offer(), 0);
    assert_int_equal(route_http("a.b.c", "/"), 1);
    assert_int_equal(route_http("x.b.c", "/"), 2);
    assert_int_equal(route_http("other", "/"), 2);
    assert_int_equal(route_http("y", "/late"), 4);
    assert_int_equal(route_http("y", "/"), 5);
    assert_int_equal(route_http("z", "/"), 6);
}

static void test_domains_with_many_labels_are_found_too(void **state)
{
    (void)state;
    rule_with(DP_HTTP1, DP_SUBJECT_HOST, "1.2.3.4.5.6.7.8.9.10.*");
    rule_with(DP_HTTP1, DP_SUBJECT_HOST, "*.1.2.3.4.5.6.7.8.9");
    rule_with(DP_HTTP1, DP_SUBJECT_HOST, "*.1.2.3.4.5.6.7");
    assert_int_equal(offer(), 0);
    assert_int_equal(route_http("1.2.3.4.5.6.7.8.9.10.11.12", "/"), 0);
    assert_int_equal(route_http("a.b.c.d.e.f.g.h.i.j.1.2.3.4.5.6.7.8.9", "/"), 1);
    assert_int_equal(route_http("a.b.c.d.e.f.g.h.i.j.1.2.3.4.5.6.7", "/"), 2);
}

static void test_path_prefixes_end_with_a_segment(void **state)
{
    (void)state;
    rule_with(DP_HTTP1, DP_SUBJECT_PATH, "/exact");
    rule_with(DP_HTTP1, DP_SUBJECT_PATH_PREFIX, "/v2");
    rule_with(DP_HTTP1, DP_SUBJECT_PATH_PREFIX, "/v3/");
    rule_with(DP_HTTP1, DP_SUBJECT_PATH_PREFIX, "/");
    assert_int_equal(offer(), 0);
    assert_int_equal(route_http("h", "/exact"), 0);
    assert_int_equal(route_http("h", "/exact?a=/v2"), 0);
    assert_int_equal(route_http("h", "/exact/x"), 3);
    assert_int_equal(route_http("h", "/v2"), 1);
    assert_int_equal(route_http("h", "/v2/x"), 1);
    assert_int_equal(route_http("h", "/v2?x"), 1);
    assert_int_equal(route_http("h", "/v2x"), 3);
    assert_int_equal(route_http("h", "/v3"), 2);
    assert_int_equal(route_http("h", "/v3/"), 2);
    assert_int_equal(route_http("h", "/V2"), 3);
    assert_int_equal(route_http("h", "*"), NO_RULE);
}

static void test_methods_and_headers(void **state)
{
    (void)state;
    rule_with(DP_HTTP1, DP_SUBJECT_METHOD, "POST");
    written_predicate(&written, DP_SUBJECT_METHOD, "PUT")->alternative = 1;
    written_predicate(&written, DP_SUBJECT_HEADER, "canary")->name =
        written_text(&written, "x-env");
    rule_with(DP_HTTP1, DP_SUBJECT_HEADER, NULL);
    written.predicates[3].name = written_text(&written, "x-debug");
    assert_int_equal(offer(), 0);
    fields[0] = (struct field){TEXT("X-Env"), TEXT("blue")};
    fields[1] = (struct field){TEXT("X-Env"), TEXT("canary")};
    fields[2] = (struct field){TEXT("x-debug"), {NULL, 0}};
    request.field_count = 2;
    request.method = TEXT("PUT");
    assert_int_equal(route(DP_HTTP1), 0);
    request.method = TEXT("POST");
    assert_int_equal(route(DP_HTTP1), 0);
    request.method = TEXT("post");
    assert_int_equal(route(DP_HTTP1), NO_RULE);
    request.field_count = 3;
    assert_int_equal(route(DP_HTTP1), 1);
    request.method = TEXT("PUT");
    request.field_count = 1;
    assert_int_equal(route(DP_HTTP1), NO_RULE);
}

static uint32_t route_bolt(const char *service)
{
    request.service = text(service);
    return route(DP_BOLT);
}

static void test_bolt_services_with_and_without_version(void **state)
{
    (void)state;
    rule_with(DP_BOLT, DP_SUBJECT_SERVICE, "a.Orders:1.0");
    rule_with(DP_BOLT, DP_SUBJECT_SERVICE, "a.Orders");
    written_predicate(&written, DP_SUBJECT_VERSION, "2.*");
    rule_with(DP_BOLT, DP_SUBJECT_SERVICE, "a.*");
    rule_with(DP_BOLT, DP_SUBJECT_SERVICE, "*.Users");
    assert_int_equal(offer(), 0);
    assert_int_equal(route_bolt("a.Orders:1.0"), 0);
    assert_int_equal(route_bolt("a.Orders:2.1"), 1);
    assert_int_equal(route_bolt("a.Orders:2.1:id"), 1);
    assert_int_equal(route_bolt("a.Orders:1.0:id"), 2);
    assert_int_equal(route_bolt("a.orders:1.0"), 2);
    assert_int_equal(route_bolt("b.Users:1.0"), 3);
    assert_int_equal(route_bolt("b.Users"), 3);
    assert_int_equal(route_bolt("Users"), NO_RULE);
    assert_int_equal(route(DP_DUBBO), NO_RULE); /* of another protocol */
}

static uint32_t route_dubbo(const char *service, const char *version, const char *group)
{
    request.service = text(service);
    request.version = text(version);
    request.group = text(group);
    return route(DP_DUBBO);
}

static void test_dubbo_services_with_version_and_group(void **state)
{
    (void)state;
    rule_with(DP_DUBBO, DP_SUBJECT_SERVICE, "a.Orders:1.0");
    rule_with(DP_DUBBO, DP_SUBJECT_SERVICE, "a.Orders");
    written_predicate(&written, DP_SUBJECT_GROUP, "blue");
    rule_with(DP_DUBBO, DP_SUBJECT_SERVICE, "a.Orders");
    written_predicate(&written, DP_SUBJECT_VERSION, "2.0");
    rule_with(DP_DUBBO, DP_SUBJECT_SERVICE, "*:3.0");
    assert_int_equal(offer(), 0);
    assert_int_equal(route_dubbo("a.Orders", "1.0", ""), 0);
    assert_int_equal(route_dubbo("a.Orders", "1.1", "blue"), 1);
    assert_int_equal(route_dubbo("a.Orders", "", "blue"), 1);
    assert_int_equal(route_dubbo("a.Orders", "2.0", "red"), 2);
    assert_int_equal(route_dubbo("a.Orders", "2.1", ""), NO_RULE);
    assert_int_equal(route_dubbo("b", "3.0", ""), 3);
    assert_int_equal(route_dubbo("a.Orders:1.0", "", ""), 0);
}

static uint32_t route_call(const char *service, const char *version, const char *group)
{
    request.service = text("host");
    request.rpc = text(service);
    request.version = text(version);
    request.group = text(group);
    return route(DP_GRPC);
}

static void test_services_of_grpc(void **state)
{
    (void)state;
    rule_with(DP_HTTP1, DP_SUBJECT_SERVICE, "a.Orders:1.0");
    rule_with(DP_HTTP1, DP_SUBJECT_TARGET, "a.Orders");
    written_predicate(&written, DP_SUBJECT_HOST, "orders")->alternative = 1;
    written_predicate(&written, DP_SUBJECT_TARGET, "a.Orders");
    written_predicate(&written, DP_SUBJECT_TARGET, "health")->alternative = 1;
    written_predicate(&written, DP_SUBJECT_GROUP, "");
    rule_with(DP_HTTP1, DP_SUBJECT_SERVICE, "a.*");
    written_predicate(&written, DP_SUBJECT_VERSION, "2.*");
    rule_with(DP_HTTP1, DP_SUBJECT_SERVICE, "host");
    rule_with(DP_HTTP1, DP_SUBJECT_SERVICE, "*");
    assert_int_equal(offer(), 0);
    assert_int_equal(route_call("a.Orders", "1.0", ""), 0);
    assert_int_equal(route_call("a.Orders", "", ""), 1);
    assert_int_equal(route_call("a.Orders", "", "blue"), 4);
    assert_int_equal(route_call("a.orders", "", ""), 4);
    assert_int_equal(route_call("a.Users", "2.1", ""), 2);
    assert_int_equal(route_call("health", "", ""), 4);
    assert_int_equal(route_call("host", "", ""), 3);
    request.service = text("Orders");
    request.rpc = text("health");
    assert_int_equal(route(DP_GRPC), 1);
    /* What is no call has no service, however it is called. */
    request.rpc = text("");
    assert_int_equal(route(DP_GRPC), NO_RULE);
    assert_int_equal(route_http("a.Orders", "/a.Orders/Get"), NO_RULE);
    assert_int_equal(route_http("host", "/"), NO_RULE);
}

static void test_weights_and_timeouts(void **state)
{
    uint32_t counts[3] = {0};
    struct dp_rule *first;

    (void)state;
    written_service(&written, "orders", DP_HTTP1);
    written_service(&written, "orders-v2", DP_HTTP1)->timeout_ms = 0;
    first = written_rule(&written, DP_HTTP1);
    written_target(&written, 0, 90);
    written_target(&written, 1, 10);
    written_target(&written, DP_NO_SERVICE, 100);
    assert_int_equal(offer(), 0);
    for (int i = 0; i < 20000; i++) {
        assert_int_equal(route_http("h", "/"), 0);
        counts[!found.service ? 2 : found.service->standing->number]++;
        assert_int_equal(found.timeout_ms,
                         found.service && found.service->standing->number == 0 ? 3000 : 0);
    }
    assert_in_range(counts[0], 8650, 9350);
    assert_in_range(counts[1], 800, 1200);
    first->timeout_ms = 500;
    assert_int_equal(offer(), 0);
    assert_int_equal(route_http("h", "/"), 0);
    assert_int_equal(found.timeout_ms, 500);
    written.entrances[0] = (struct dp_entrance){.protocol = DP_HTTP1, .service = 0};
    written.table.entrance_count = 1;
    assert_int_equal(offer(), 0);
    router_route_at(worker, 0, DP_HTTP1, &request, &found);
    assert_int_equal(found.rule, NO_RULE); /* a listener's own service: no rule is asked */
    assert_int_equal(found.timeout_ms, 3000);
    assert_ptr_equal(found.service, directories.newest->services[0]);
    router_route_at(worker, 0, DP_BOLT, &request, &found);
    assert_null(found.service); /* it speaks another protocol now */
}

static void test_what_is_said_of_failures_is_found_with_the_service(void **state)
{
    (void)state;
    rule(DP_HTTP1)->handling = 1;
    written_service(&written, "shadow", DP_HTTP1);
    written.services[0].resilience = 2;
    written.table.resilience_count = 2;
    written.table.handling_count = 1;
    written.resiliences[1] =
        (struct dp_resilience){.retries = 3, .mirror_share = DP_SHARES, .mirror = 1};
    written.handlings[0] = (struct dp_handling){.hedge_ms = 50};
    written.entrances[0] = (struct dp_entrance){.protocol = DP_HTTP1, .service = 0};
    written.table.entrance_count = 1;
    assert_int_equal(offer(), 0);
    assert_int_equal(route_http("h", "/"), 0);
    assert_int_equal(found.service->resilience.retries, 3);
    assert_ptr_equal(found.mirror, directories.newest->services[1]);
    assert_int_equal(found.handling->hedge_ms, 50);
    router_route_at(worker, 0, DP_HTTP1, &request, &found);
    assert_ptr_equal(found.mirror, directories.newest->services[1]);
    assert_null(found.handling); /* no rule was asked */
    written.services[0].resilience = written.rules[0].handling = 0;
    assert_int_equal(offer(), 0);
    assert_int_equal(route_http("h", "/"), 0);
    assert_null(found.mirror);
    assert_null(found.handling);
}

static void test_hash_of_a_header(void **state)
{
    uint64_t hash;

    (void)state;
    rule(DP_HTTP1);
    written.services[0].balance = DP_RING_HASH;
    written.services[0].hash_by = written_text(&written, "x-user");
    assert_int_equal(offer(), 0);
    fields[0] = (struct field){TEXT("X-User"), TEXT("ann")};
    request.field_count = 1;
    assert_int_equal(route(DP_HTTP1), 0);
    hash = found.hash;
    assert_int_equal(route(DP_HTTP1), 0);
    assert_int_equal(found.hash, hash);
    fields[0].value = TEXT("bob");
    assert_int_equal(route(DP_HTTP1), 0);
    assert_int_not_equal(found.hash, hash);
    request.field_count = 0; /* goes anywhere */
    assert_int_equal(route(DP_HTTP1), 0);
    hash = found.hash;
    assert_int_equal(route(DP_HTTP1), 0);
    assert_int_not_equal(found.hash, hash);
}

static uint32_t route_in(enum dp_scope scope, uint32_t protocol)
{
    router_route(worker, scope, protocol, &request, &found);
    return found.rule;
}

/* Of those that are found by a hash, and the others. */
static void test_each_scope_has_its_rules(void **state)
{
    uint32_t everywhere = 1u << DP_SCOPE_OUTBOUND | 1u << DP_SCOPE_INBOUND;

    (void)state;
    rule_with(DP_BOLT, DP_SUBJECT_SERVICE, "both");
    written.rules[0].scopes = everywhere;
    rule_with(DP_BOLT, DP_SUBJECT_SERVICE, "same");
    rule_with(DP_BOLT, DP_SUBJECT_SERVICE, "same");
    written.rules[2].scopes = 1u << DP_SCOPE_INBOUND | 1u << DP_SCOPE_PROVIDER;
    rule_with(DP_BOLT, DP_SUBJECT_METHOD, "any");
    written.rules[3].scopes = everywhere;
    rule_with(DP_BOLT, DP_SUBJECT_SERVICE, "*any*");
    written.rules[4].scopes = 1u << DP_SCOPE_PROVIDER;
    assert_int_equal(offer(), 0);
    request.service = TEXT("both");
    assert_int_equal(route_in(DP_SCOPE_OUTBOUND, DP_BOLT), 0);
    assert_int_equal(route_in(DP_SCOPE_INBOUND, DP_BOLT), 0);
    assert_int_equal(route_in(DP_SCOPE_PROVIDER, DP_BOLT), NO_RULE);
    request.service = TEXT("same");
    assert_int_equal(route_in(DP_SCOPE_OUTBOUND, DP_BOLT), 1);
    assert_int_equal(route_in(DP_SCOPE_INBOUND, DP_BOLT), 2);
    assert_int_equal(route_in(DP_SCOPE_PROVIDER, DP_BOLT), 2);
    request.service = TEXT("many");
    request.method = TEXT("any");
    assert_int_equal(route_in(DP_SCOPE_OUTBOUND, DP_BOLT), 3);
    assert_int_equal(route_in(DP_SCOPE_INBOUND, DP_BOLT), 3);
    assert_int_equal(route_in(DP_SCOPE_PROVIDER, DP_BOLT), 4);
    assert_int_equal(route_in(DP_SCOPE_PROVIDER, DP_DUBBO), NO_RULE);
    written.entrances[0] = (struct dp_entrance){
        .protocol = DP_AUTO, .service = DP_NO_SERVICE, .scope = DP_SCOPE_PROVIDER};
    written.table.entrance_count = 1;
    assert_int_equal(offer(), 0);
    router_route_at(worker, 0, DP_BOLT, &request, &found);
    assert_int_equal(found.rule, 4);
}

static void test_targets_are_exactly_what_a_request_names(void **state)
{
    (void)state;
    rule_with(DP_BOLT, DP_SUBJECT_TARGET, "a.Orders:1.0");
    rule_with(DP_BOLT, DP_SUBJECT_TARGET, "a.Orders:1.0:u1");
    rule_with(DP_BOLT, DP_SUBJECT_TARGET, "a.Users");
    rule_with(DP_DUBBO, DP_SUBJECT_TARGET, "a.Orders");
    written_predicate(&written, DP_SUBJECT_VERSION, "1.0");
    written_predicate(&written, DP_SUBJECT_GROUP, "");
    assert_int_equal(offer(), 0);
    assert_int_equal(route_bolt("a.Orders:1.0"), 0);
    assert_int_equal(route_bolt("a.Orders:1.0:u1"), 1);
    assert_int_equal(route_bolt("a.Orders:1.0:u2"), NO_RULE);
    assert_int_equal(route_bolt("a.Orders:1"), NO_RULE);
    assert_int_equal(route_bolt("a.Orders"), NO_RULE);
    assert_int_equal(route_bolt("a.Users"), 2);
    assert_int_equal(route_bolt("a.Users:1.0"), NO_RULE);
    assert_int_equal(route_dubbo("a.Orders", "1.0", ""), 3);
    assert_int_equal(route_dubbo("a.Orders", "1.0", "blue"), NO_RULE);
    assert_int_equal(route_dubbo("a.Orders", "", ""), NO_RULE);
    assert_int_equal(route_dubbo("a.Orders:1.0", "", ""), NO_RULE);
}

static void header_rule(const char *name, const char *value)
{
    rule_with(DP_HTTP1, DP_SUBJECT_HEADER, value);
    written.predicates[written.table.predicate_count - 1].name = written_text(&written, name);
}

/* More names than are in the index; the first rule counts, wherever it is found. */
static void test_headers_are_found_by_a_hash_or_not(void **state)
{
    (void)state;
    header_rule("x-a", "1");
    header_rule("x-b", "1");
    header_rule("x-c", "1");
    header_rule("x-d", "1");
    header_rule("x-e", "1");
    header_rule("X-A", "2");
    header_rule("x-a", "3");
    written_predicate(&written, DP_SUBJECT_METHOD, "PUT");
    assert_int_equal(offer(), 0);
    request.method = TEXT("GET");
    request.field_count = 2;
    fields[0] = (struct field){TEXT("X-a"), TEXT("2")};
    fields[1] = (struct field){TEXT("x-e"), TEXT("1")};
    assert_int_equal(route(DP_HTTP1), 4);
    fields[1] = (struct field){TEXT("x-e"), TEXT("2")};
    assert_int_equal(route(DP_HTTP1), 5);
    fields[1] = (struct field){TEXT("x-b"), TEXT("1")};
    assert_int_equal(route(DP_HTTP1), 1);
    fields[0] = (struct field){TEXT("x-a"), TEXT("3")};
    fields[1] = (struct field){TEXT("x-a"), TEXT("3")};
    assert_int_equal(route(DP_HTTP1), NO_RULE);
    request.method = TEXT("PUT");
    assert_int_equal(route(DP_HTTP1), 6);
    assert_int_equal(route(DP_BOLT), NO_RULE);
}

static void test_a_request_full_of_indexed_headers(void **state)
{
    static struct field many[MAX_FIELDS];

    (void)state;
    header_rule("x-a", "last");
    assert_int_equal(offer(), 0);
    for (int i = 0; i < MAX_FIELDS; i++)
        many[i] = (struct field){TEXT("x-a"), TEXT("other")};
    many[MAX_FIELDS - 1].value = TEXT("last");
    request.fields = many;
    request.field_count = MAX_FIELDS;
    assert_int_equal(route_http("1.2.3.4.5.6.7.8.9.10.11", "/"), 0);
}

static void assert_rewritten(const char *path, const char *to)
{
    char result[256];
    struct text prefix;
    uint32_t size;

    (void)route_http("h", path);
    assert_non_null(found.rewrite);
    prefix = found.rewrite->path_prefix;
    size = prefix.at ? found.rewrite->path_prefix_size : 0;
    assert_true(size <= strlen(path));
    snprintf(result, sizeof result, "%.*s%s", prefix.at ? (int)prefix.size : 0,
             prefix.at ? prefix.at : "", path + size);
    assert_string_equal(result, to);
}

static void test_paths_are_rewritten_with_one_slash(void **state)
{
    (void)state;
    rule_with(DP_HTTP1, DP_SUBJECT_PATH_PREFIX, "/v2/");
    written_predicate(&written, DP_SUBJECT_PATH_PREFIX, "/version2")->alternative = 1;
    written.rules[0].path_prefix = written_text(&written, "/");
    rule_with(DP_HTTP1, DP_SUBJECT_PATH_PREFIX, "/a");
    written.rules[1].path_prefix = written_text(&written, "/b/c/");
    rule_with(DP_HTTP1, DP_SUBJECT_PATH, "/one");
    written.rules[2].path_prefix = written_text(&written, "/other");
    rule(DP_HTTP1)->path_prefix = written_text(&written, "/all");
    assert_int_equal(offer(), 0);
    assert_rewritten("/v2/x", "/x");
    assert_rewritten("/v2/", "/");
    assert_rewritten("/v2", "/");
    assert_rewritten("/v2?q", "/?q");
    assert_rewritten("/version2/x?q", "/x?q");
    assert_rewritten("/a", "/b/c");
    assert_rewritten("/a/", "/b/c/");
    assert_rewritten("/a/x", "/b/c/x");
    assert_rewritten("/a?q", "/b/c?q");
    assert_rewritten("/one", "/other");
    assert_rewritten("/one?q", "/other?q");
    assert_rewritten("/x", "/all/x");
    assert_rewritten("/", "/all/");
    assert_rewritten("*", "*");
}

static void test_what_else_is_rewritten(void **state)
{
    const struct rewrite *rewrite;

    (void)state;
    rule(DP_HTTP1);
    rule(DP_BOLT);
    written.rules[0].host = written_text(&written, "inner");
    written.rules[0].original_destination = written_text(&written, "x-original-destination");
    written.headers[0] =
        (struct dp_header){written_text(&written, "x-a"), written_text(&written, "1")};
    written.headers[1] = (struct dp_header){written_text(&written, "x-b"), 0};
    written.headers[2] = (struct dp_header){written_text(&written, "cookie"), 0};
    written.table.header_count = 3;
    written.rules[0].set_count = 2;
    written.rules[0].first_remove = 2;
    written.rules[0].remove_count = 1;
    assert_int_equal(offer(), 0);
    assert_int_equal(route_http("h", "/"), 0);
    rewrite = found.rewrite;
    assert_non_null(rewrite);
    assert_null(rewrite->path_prefix.at);
    assert_true(text_equal(rewrite->host, TEXT("inner")));
    assert_true(text_equal(rewrite->original_destination, TEXT("x-original-destination")));
    assert_int_equal(rewrite->set_count, 2);
    assert_true(text_equal(rewrite->set[0].name, TEXT("x-a")));
    assert_true(text_equal(rewrite->set[0].value, TEXT("1")));
    assert_true(text_equal(rewrite->set[1].name, TEXT("x-b")));
    assert_int_equal(rewrite->set[1].value.size, 0);
    assert_int_equal(rewrite->remove_count, 1);
    assert_true(text_equal(rewrite->remove[0], TEXT("cookie")));
    assert_int_equal(route_bolt("x"), 1);
    assert_null(found.rewrite);
}

static void test_listeners(void **state)
{
    struct entrance entrance;

    (void)state;
    rule(DP_HTTP1);
    written.entrances[0] =
        (struct dp_entrance){DP_AUTO, 700, DP_REFUSE, DP_NO_SERVICE, DP_SCOPE_INBOUND, 2000, 0};
    written.entrances[1] = (struct dp_entrance){.protocol = DP_HTTP1, .service = 0};
    written.table.entrance_count = 2;
    assert_int_equal(offer(), 0);
    entrance = router_entrance(worker, 0);
    assert_int_equal(entrance.protocol, DP_AUTO);
    assert_int_equal(entrance.detect_ms, 700);
    assert_int_equal(entrance.undetected, DP_REFUSE);
    assert_int_equal(entrance.scope, DP_SCOPE_INBOUND);
    assert_int_equal(entrance.on_demand_ms, 2000);
    assert_null(entrance.service);
    entrance = router_entrance(worker, 1);
    assert_ptr_equal(entrance.service, directories.newest->services[0]);
    assert_int_equal(router_entrance(worker, 2).protocol, DP_TCP);
}

/* What was found in a turn may be used until it ends. */
static void test_a_new_table_is_adopted_in_the_next_turn(void **state)
{
    struct endpoint *endpoint;
    struct service *service;
    struct mosnhook_address address = on_loopback(80);

    (void)state;
    rule(DP_HTTP1);
    written_endpoint(&written, &address);
    assert_int_equal(offer(), 0);
    assert_int_equal(route_http("h", "/"), 0);
    service = found.service;
    endpoint = service->cluster->endpoints[0];
    assert_int_equal(router_generation(worker), 1);
    assert_int_equal(atomic_load(&endpoint->generation), 1);
    shared_reference(&service->shared);

    written.services[0].endpoint_count = 0;
    assert_int_equal(offer(), 0);
    worker->loop.now_ns--; /* still in the turn before */
    assert_int_equal(route_http("h", "/"), 0);
    assert_false(router_adopt(worker));
    assert_ptr_equal(found.service, service);
    worker->loop.now_ns++;
    assert_true(router_adopt(worker));
    assert_int_equal(route_http("h", "/"), 0);
    assert_ptr_not_equal(found.service, service);
    assert_ptr_equal(found.service->standing, service->standing);
    assert_int_equal(router_generation(worker), 2);
    assert_int_equal(atomic_load(&endpoint->generation), 1); /* nobody names it any more */
    keeper_collect(&routed_worker.routes.registry.keeper);
    shared_release(&service->shared);
    keeper_collect(&routed_worker.routes.registry.keeper);
    assert_int_equal(routed_worker.routes.registry.endpoints.count, 0);
}

static void assert_refused(void)
{
    assert_int_equal(offer(), -EINVAL);
    assert_null(directories.newest);
}

/* One field of the table at a time is spoilt. */
#define REFUSES(field, value)            \
    do {                                 \
        __typeof__(field) was = (field); \
        (field) = (value);               \
        assert_refused();                \
        (field) = was;                   \
    } while (0)

static void test_what_is_not_consistent_is_refused(void **state)
{
    struct mosnhook_address address = on_loopback(80);

    (void)state;
    rule_with(DP_HTTP1, DP_SUBJECT_HOST, "a");
    written_endpoint(&written, &address);
    rule_with(DP_HTTP1, DP_SUBJECT_HOST, "b");
    written.table.entrance_count = written.table.header_count = 1;
    written.rules[0].set_count = 1;
    written.table.resilience_count = written.table.handling_count = 1;
    written.services[0].resilience = written.rules[0].handling = 1;
    written.resiliences[0] = (struct dp_resilience){
        .mirror_share = 1, .rate_requests = 1, .rate_ms = 1, .rate_burst = 1};
    REFUSES(written.table.text_count, 0);
    REFUSES(written.services[0].resilience, 2);
    REFUSES(written.resiliences[0].budget, DP_SHARES + 1);
    REFUSES(written.resiliences[0].mirror_share, DP_SHARES + 1);
    REFUSES(written.resiliences[0].mirror, 1);
    REFUSES(written.resiliences[0].rate_ms, 0);
    REFUSES(written.resiliences[0].rate_burst, 0);
    REFUSES(written.rules[1].handling, 2);
    REFUSES(written.handlings[0].delay_share, DP_SHARES + 1);
    REFUSES(written.handlings[0].abort_share, DP_SHARES + 1);
    REFUSES(written.handlings[0].abort_status, DP_STATUSES);
    REFUSES(written.texts[0].size, 1);
    REFUSES(written.texts[1].size, UINT32_MAX);
    REFUSES(written.texts[1].first, UINT32_MAX);
    REFUSES(written.services[0].number, DP_NO_SERVICE);
    REFUSES(written.services[0].name, written.table.text_count);
    REFUSES(written.services[0].hash_by, written.table.text_count);
    REFUSES(written.services[0].protocol, DP_AUTO);
    REFUSES(written.services[0].balance, DP_LEAST_CONNECTIONS);
    REFUSES(written.services[0].balance, DP_PEAK_EWMA + 1);
    REFUSES(written.endpoints[0].level, SERVICE_LEVELS);
    REFUSES(written.services[0].first_endpoint, 1);
    REFUSES(written.services[0].endpoint_count, UINT32_MAX);
    REFUSES(written.endpoints[0].weight, 0);
    REFUSES(written.services[0].role, DP_ROLES);
    REFUSES(written.rules[0].protocol, DP_PROTOCOLS);
    REFUSES(written.rules[0].scopes, 0);
    REFUSES(written.rules[0].scopes, 1u << DP_SCOPES);
    REFUSES(written.entrances[0].scope, DP_SCOPES);
    REFUSES(written.entrances[0].name_header, written.table.text_count);
    REFUSES(written.rules[1].first_predicate, 0);
    REFUSES(written.rules[1].predicate_count, 2);
    REFUSES(written.rules[1].first_target, 0);
    REFUSES(written.rules[1].target_count, 0);
    REFUSES(written.rules[1].target_count, 2);
    REFUSES(written.rules[0].host, written.table.text_count);
    REFUSES(written.rules[0].path_prefix, written.table.text_count);
    REFUSES(written.rules[0].original_destination, written.table.text_count);
    REFUSES(written.rules[0].set_count, 2);
    REFUSES(written.rules[0].first_remove, 2);
    REFUSES(written.headers[0].name, written.table.text_count);
    REFUSES(written.headers[0].value, written.table.text_count);
    REFUSES(written.targets[0].service, 1);
    REFUSES(written.targets[0].weight, 0);
    REFUSES(written.predicates[0].subject, DP_SUBJECT_NAME_HEADER + 1);
    REFUSES(written.predicates[0].pattern, DP_PATTERN_ANY);
    REFUSES(written.predicates[0].name, written.table.text_count);
    REFUSES(written.predicates[0].value, written.table.text_count);
    REFUSES(written.entrances[0].protocol, DP_AUTO + 1);
    REFUSES(written.entrances[0].undetected, DP_REFUSE + 1);
    REFUSES(written.entrances[0].service, 1);
    written_service(&written, "twice", DP_HTTP1)->number = 0;
    written.services[1].name = written.services[0].name;
    assert_refused();
    written.services[1].number = 1;
    assert_int_equal(offer(), 0);
    assert_int_equal(directories.newest->generation, 1);
}

static void test_whichever_allocation_fails_the_table_stays(void **state)
{
    struct mosnhook_address address = on_loopback(80);
    bool failed = true;

    (void)state;
    rule_with(DP_HTTP1, DP_SUBJECT_HOST, "a");
    written_endpoint(&written, &address);
    assert_int_equal(offer(), 0);
    written.endpoints[0].address.port++;
    written_service(&written, "other", DP_BOLT);
    written.rules[0].host = written_text(&written, "inner");
    for (unsigned number = 1; failed; number++) {
        struct directory *directory;

        failing_set(number);
        directory = directory_create(&directories, &written.table);
        failed = failing_take();
        assert_true(directory || failed);
        if (directory) {
            assert_int_equal(directory->generation, 2);
            keeper_release(&directory->shared);
        }
        assert_int_equal(routed_worker.routes.registry.endpoints.count, 1);
    }
    assert_int_equal(route_http("a", "/"), 0);
    assert_int_equal(router_generation(worker), 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_without_a_table_nothing_is_found),
        TEST(test_hosts),
        TEST(test_the_first_one_counts),
        TEST(test_domains_with_many_labels_are_found_too),
        TEST(test_path_prefixes_end_with_a_segment),
        TEST(test_methods_and_headers),
        TEST(test_bolt_services_with_and_without_version),
        TEST(test_dubbo_services_with_version_and_group),
        TEST(test_services_of_grpc),
        TEST(test_weights_and_timeouts),
        TEST(test_what_is_said_of_failures_is_found_with_the_service),
        TEST(test_hash_of_a_header),
        TEST(test_each_scope_has_its_rules),
        TEST(test_targets_are_exactly_what_a_request_names),
        TEST(test_headers_are_found_by_a_hash_or_not),
        TEST(test_a_request_full_of_indexed_headers),
        TEST(test_paths_are_rewritten_with_one_slash),
        TEST(test_what_else_is_rewritten),
        TEST(test_listeners),
        TEST(test_a_new_table_is_adopted_in_the_next_turn),
        TEST(test_what_is_not_consistent_is_refused),
        TEST(test_whichever_allocation_fails_the_table_stays),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
