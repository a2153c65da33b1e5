#include "unit.h"

#include "routed.h"
#include "upstream/choice.h"

enum { MANY = 100, POSTPONED = 64 };

static struct routed_worker routed;
static struct worker *const worker = &routed.worker;
static struct dp_listener listener;
static struct origin origin;
static struct choice choice;
static struct mosnhook_address endpoints[MANY];

static int set_up(void **state)
{
    (void)state;
    routed_open(&routed);
    for (uint16_t i = 0; i < MANY; i++)
        endpoints[i] = on_loopback((uint16_t)(1000 + i));
    listener = (struct dp_listener){.direction = DP_OUTBOUND};
    origin = (struct origin){.listener = &listener, .original_destination = on_loopback(80)};
    origin.original_destination.ip[12] = 10;
    worker->loop.now_ms = 100000;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    choice_release(&choice);
    routed_close(&routed);
    return 0;
}

static void route_to(uint32_t count, uint32_t balance)
{
    struct dp_route route = {.endpoint_count = count, .balance = balance};

    set_route(&routed, DP_OUTBOUND, &route, endpoints);
}

static void assert_goes_only_to(const struct mosnhook_address *upstream)
{
    assert_int_equal(choice_begin(&choice, worker, &origin), DP_END_NONE);
    assert_null(choice.cluster);
    assert_true(choice_next(&choice, worker, &origin));
    assert_memory_equal(&choice.upstream, upstream, sizeof *upstream);
    assert_false(choice_next(&choice, worker, &origin));
}

static void test_without_a_route_it_goes_where_it_wanted_to(void **state)
{
    struct mosnhook_address upstream = on_loopback(80);

    (void)state;
    assert_goes_only_to(&origin.original_destination);
    assert_int_equal(choice.route, UINT32_MAX);
    listener.application = on_loopback(99); /* whose port does not matter */
    assert_goes_only_to(&upstream);
}

static void test_it_never_goes_to_ourselves(void **state)
{
    struct mosnhook_address own[] = {origin.original_destination};

    (void)state;
    assert_int_equal(routes_set_own(&routed.routes, own, 1), 0);
    assert_int_equal(choice_begin(&choice, worker, &origin), DP_END_LOOP);
    origin.original_destination.port++;
    assert_int_equal(choice_begin(&choice, worker, &origin), DP_END_NONE);
}

static void test_what_is_refused_and_what_is_excluded(void **state)
{
    struct dp_route route = {.action = DP_REFUSE};

    (void)state;
    set_route(&routed, DP_OUTBOUND, &route, NULL);
    assert_int_equal(choice_begin(&choice, worker, &origin), DP_END_REFUSED_BY_ROUTE);
    set_route(&routed, DP_EXCLUDED, &route, NULL);
    assert_int_equal(choice_begin(&choice, worker, &origin), DP_END_REFUSED_BY_ROUTE);
    origin.original_destination.ip[12] = 127; /* only what is on loopback is excluded */
    assert_int_equal(choice_begin(&choice, worker, &origin), DP_END_EXCLUDED);
    listener.direction = DP_INBOUND; /* and only outbound */
    assert_int_equal(choice_begin(&choice, worker, &origin), DP_END_NONE);
}

static unsigned active(uint32_t index)
{
    return atomic_load(&choice.cluster->endpoints[index]->active);
}

static uint32_t index_of(const struct endpoint *endpoint)
{
    return endpoint->address.port - 1000u;
}

/* Each one once; the order, by number. */
static void try_all(uint32_t count, uint32_t *order)
{
    bool tried[MANY] = {false};

    for (uint32_t i = 0; i < count; i++) {
        assert_true(choice_next(&choice, worker, &origin));
        order[i] = index_of(choice.endpoint);
        assert_false(tried[order[i]]);
        tried[order[i]] = true;
        for (uint32_t k = 0; k < count; k++)
            assert_int_equal(active(k), k == order[i]); /* only the one that is tried */
    }
    assert_false(choice_next(&choice, worker, &origin));
    assert_false(choice_next(&choice, worker, &origin));
    assert_null(choice.endpoint);
    for (uint32_t k = 0; k < count; k++)
        assert_int_equal(active(k), 0);
}

static void eject(uint32_t index, uint64_t ago_ms)
{
    endpoint_failed(choice.cluster->endpoints[index], worker->loop.now_ms - ago_ms);
}

static void begin(void)
{
    assert_int_equal(choice_begin(&choice, worker, &origin), DP_END_NONE);
    assert_non_null(choice.cluster);
}

static void test_the_ejected_ones_come_last(void **state)
{
    uint32_t order[6];

    (void)state;
    route_to(6, DP_ROUND_ROBIN);
    begin();
    eject(1, 0);
    eject(2, 999); /* for one more millisecond */
    eject(4, 1000);
    choice.first = 1;
    try_all(6, order);
    assert_memory_equal(order, ((uint32_t[]){3, 4, 5, 0, 1, 2}), sizeof order);
}

static void test_if_all_are_ejected_all_are_tried(void **state)
{
    uint32_t order[6];

    (void)state;
    route_to(6, DP_ROUND_ROBIN);
    begin();
    for (uint32_t i = 0; i < 6; i++)
        eject(i, 0);
    choice.first = 4;
    try_all(6, order);
    assert_memory_equal(order, ((uint32_t[]){4, 5, 0, 1, 2, 3}), sizeof order);
}

/* No more are postponed than there are bits; the others are tried where they stand. */
static void test_of_very_many_each_is_still_tried_once(void **state)
{
    uint32_t order[MANY];

    (void)state;
    route_to(MANY, DP_ROUND_ROBIN);
    begin();
    for (uint32_t i = 0; i < MANY; i++)
        if (i != 10)
            eject(i, 0);
    choice.first = 0;
    try_all(MANY, order);
    assert_int_equal(order[0], 10);
    assert_int_equal(order[1], POSTPONED);
    assert_int_equal(order[MANY - POSTPONED + 1], 0);
    assert_int_equal(order[MANY - 1], POSTPONED - 1);
}

static void test_ejection_can_be_off(void **state)
{
    uint32_t order[3];

    (void)state;
    route_to(3, DP_ROUND_ROBIN);
    atomic_store(&routed.timeouts.ejection_ms, 0);
    begin();
    endpoint_failed(choice.cluster->endpoints[1], worker->loop.now_ms + 5); /* another worker's */
    choice.first = 1;
    try_all(3, order);
    assert_int_equal(order[0], 1);
}

static void test_a_turn_that_was_not_used_is_the_next_ones(void **state)
{
    uint32_t first;

    (void)state;
    route_to(5, DP_ROUND_ROBIN);
    begin();
    first = choice.first;
    choice_release(&choice);
    begin();
    assert_int_equal(choice.first, (first + 1) % 5);
    choice_give_back(&choice);
    choice_release(&choice);
    begin();
    assert_int_equal(choice.first, (first + 1) % 5);
}

static void test_a_choice_outlives_its_table(void **state)
{
    struct endpoint *endpoint;

    (void)state;
    route_to(2, DP_LEAST_CONNECTIONS);
    begin();
    assert_true(choice_next(&choice, worker, &origin));
    endpoint = choice.endpoint;
    set_route(&routed, DP_OUTBOUND, NULL, NULL);
    (void)tables_get(worker, DP_OUTBOUND);
    keeper_collect(&routed.routes.registry.keeper);
    assert_int_equal(atomic_load(&endpoint->active), 1);
    route_to(3, DP_LEAST_CONNECTIONS); /* another cluster with the same endpoints */
    assert_int_equal(routed.routes.registry.endpoints.count, 3);
    assert_int_equal(routed.routes.registry.clusters.count, 2);
    choice_release(&choice);
    keeper_collect(&routed.routes.registry.keeper);
    assert_int_equal(routed.routes.registry.clusters.count, 1);
}

static void test_whichever_allocation_of_a_table_fails_nothing_is_left(void **state)
{
    struct registry *registry = &routed.routes.registry;
    struct dp_route route = {.endpoint_count = 40};
    bool failed = true;
    unsigned number;

    (void)state;
    for (number = 1; failed; number++) {
        struct table *table;

        failing_set(number);
        table = table_to(registry, DP_OUTBOUND, &route, endpoints);
        failed = failing_take();
        assert_true(table || failed); /* a map that cannot grow is merely slow */
        table_drop(table);
        assert_int_equal(registry->clusters.count, 0);
        assert_int_equal(registry->endpoints.count, 0);
    }
    assert_in_range(number, 40, 60);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_without_a_route_it_goes_where_it_wanted_to),
        TEST(test_it_never_goes_to_ourselves),
        TEST(test_what_is_refused_and_what_is_excluded),
        TEST(test_the_ejected_ones_come_last),
        TEST(test_if_all_are_ejected_all_are_tried),
        TEST(test_of_very_many_each_is_still_tried_once),
        TEST(test_ejection_can_be_off),
        TEST(test_a_turn_that_was_not_used_is_the_next_ones),
        TEST(test_a_choice_outlives_its_table),
        TEST(test_whichever_allocation_of_a_table_fails_nothing_is_left),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
