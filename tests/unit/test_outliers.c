/* Which endpoints are passed over, and what is picked then: outliers, panic, zones, slow start. */
#include "unit.h"

#include <string.h>

#include "base/clock.h"
#include "upstream/outliers.h"

enum {
    WORKERS = 1,
    MANY = 100,
    NOW = 1000000,
    SECOND = 1000,
    PERCENT = DP_SHARES / 100,
    MS = 1000 * 1000
};

static struct registry registry;
static struct standings standings;
static struct service *service;
static struct dp_endpoint endpoints[MANY];
static struct dp_endpoint_policy policy;
static uint64_t random_state, now_ms;

static int set_up(void **state)
{
    (void)state;
    registry_init(&registry, -1);
    standings_init(&standings, WORKERS);
    random_state = 4711;
    now_ms = NOW;
    service = NULL;
    policy = (struct dp_endpoint_policy){.panic_share = 50 * PERCENT,
                                         .outlier_errors = 5,
                                         .outlier_ms = 30 * SECOND,
                                         .outlier_share = 100 * PERCENT};
    for (uint16_t i = 0; i < MANY; i++)
        endpoints[i] =
            (struct dp_endpoint){.address = on_loopback((uint16_t)(1000 + i)), .weight = 1};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    keeper_release(&service->shared);
    standings_close(&standings);
    registry_close(&registry);
    return 0;
}

static void use(uint32_t balance, uint32_t count)
{
    struct dp_service settings = {
        .number = 1, .protocol = DP_BOLT, .balance = balance, .endpoint_count = count};
    struct service_plan plan = {&settings, TEXT("orders"), TEXT("x-user"), endpoints, NULL};
    struct service *next;

    settings.policy = policy;
    next = service_intern(&registry, &standings, &plan);
    assert_non_null(next);
    if (service)
        keeper_release(&service->shared);
    service = next;
}

static bool fail_at(uint32_t index)
{
    return outliers_note(service, service_endpoint(service, index),
                         &(struct attempt){.failed = true, .latency_ns = MS}, now_ms);
}

static void succeed(uint32_t index)
{
    assert_false(outliers_note(service, service_endpoint(service, index),
                               &(struct attempt){.latency_ns = MS}, now_ms));
}

/* As often as it takes. */
static bool eject(uint32_t index)
{
    for (uint32_t i = 1; i < policy.outlier_errors; i++)
        assert_false(fail_at(index));
    return fail_at(index);
}

static void set_healthy(uint32_t index, bool healthy)
{
    atomic_store(&service_endpoint(service, index)->unhealthy, !healthy);
    service_changed(service->standing);
}

static uint32_t index_of(const struct endpoint *endpoint)
{
    return endpoint->address.port - 1000u;
}

static uint32_t flags; /* of all picks */

/* How often each is picked. */
static void pick_many(uint32_t picks, uint32_t *counts)
{
    memset(counts, 0, MANY * sizeof *counts);
    flags = 0;
    for (uint32_t i = 0; i < picks; i++) {
        struct pick picking = {.since_ms = UINT64_MAX, .now_ms = now_ms, .random = &random_state};
        struct endpoint *endpoint;

        picking.hash = (uint64_t)i * UINT64_C(0x9e3779b97f4a7c15);
        endpoint = service_pick(service, &picking);
        flags |= picking.flags;
        if (endpoint)
            counts[index_of(endpoint)]++;
    }
}

static bool is_flagged(enum dp_flag flag)
{
    return flags & 1u << flag;
}

/* ---- outliers ---- */

static void test_only_errors_in_a_row_eject(void **state)
{
    uint32_t counts[MANY];

    (void)state;
    use(DP_ROUND_ROBIN, 10);
    for (int i = 0; i < 100; i++) {
        for (int k = 0; k < 4; k++)
            assert_false(fail_at(3));
        succeed(3);
    }
    pick_many(100, counts);
    assert_int_equal(counts[3], 10);
    assert_true(eject(3));
    pick_many(900, counts);
    assert_int_equal(counts[3], 0);
    assert_int_equal(counts[4], 100);
    assert_false(is_flagged(DP_FLAG_PANIC));
    now_ms += 30 * SECOND - 1;
    pick_many(90, counts);
    assert_int_equal(counts[3], 0);
    now_ms++;
    pick_many(100, counts);
    assert_int_equal(counts[3], 10);
}

static void test_without_detection_nobody_is_ejected(void **state)
{
    (void)state;
    policy.outlier_errors = 0;
    use(DP_ROUND_ROBIN, 3);
    for (int i = 0; i < 1000; i++)
        assert_false(fail_at(0));
    assert_int_equal(atomic_load(&service->standing->changes), 0);
}

static uint64_t ejected_for(uint32_t index)
{
    return atomic_load(&service_endpoint(service, index)->ejected_until_ms) - now_ms;
}

static void test_each_time_takes_longer_until_it_is_forgotten(void **state)
{
    (void)state;
    use(DP_ROUND_ROBIN, 10);
    for (uint64_t times = 1; times <= 15; times++) {
        assert_true(eject(0));
        assert_int_equal(ejected_for(0), (times < 10 ? times : 10) * 30 * SECOND);
        assert_false(eject(0)); /* it is already: those that were under way */
        now_ms += ejected_for(0);
    }
    now_ms += 140 * SECOND; /* of which each ten forget one */
    assert_true(eject(0));
    assert_int_equal(ejected_for(0), 2 * 30 * SECOND);
    now_ms += ejected_for(0) + 1000 * SECOND;
    assert_true(eject(0));
    assert_int_equal(ejected_for(0), 30 * SECOND);
}

static void test_a_long_ejection_time_is_no_shorter(void **state)
{
    (void)state;
    policy.outlier_ms = 3600 * SECOND;
    use(DP_ROUND_ROBIN, 10);
    for (int i = 0; i < 3; i++) {
        assert_true(eject(0));
        assert_int_equal(ejected_for(0), 3600 * SECOND);
        now_ms += 3600 * SECOND;
    }
}

static void test_some_stay_but_one_may_always_go(void **state)
{
    (void)state;
    policy.outlier_share = 30 * PERCENT;
    use(DP_ROUND_ROBIN, 10);
    for (uint32_t i = 0; i < 10; i++)
        assert_int_equal(eject(i), i < 3);
    now_ms += 30 * SECOND;
    for (uint32_t i = 5; i < 10; i++) /* they have failed often enough */
        assert_int_equal(fail_at(i), i < 8);
    policy.outlier_share = 0 * PERCENT;
    policy.outlier_ms = 10 * SECOND;
    now_ms += 1000 * SECOND;
    use(DP_ROUND_ROBIN, 3);
    assert_true(eject(0));
    assert_false(eject(1));
}

static void test_more_endpoints_let_more_be_ejected(void **state)
{
    (void)state;
    policy.outlier_share = 20 * PERCENT;
    use(DP_ROUND_ROBIN, 5);
    assert_true(eject(0));
    assert_false(eject(1));
    use(DP_ROUND_ROBIN, 10);
    assert_true(fail_at(1));
}

/* ---- panic ---- */

static const uint32_t balances[] = {DP_ROUND_ROBIN, DP_RANDOM, DP_LEAST_REQUESTS,
                                    DP_RING_HASH,   DP_MAGLEV, DP_PEAK_EWMA};

static void test_with_too_few_available_all_are_used(void **state)
{
    uint32_t counts[MANY];

    (void)state;
    for (size_t k = 0; k < COUNT(balances); k++) {
        use(balances[k], 10);
        for (uint32_t i = 0; i < 5; i++)
            set_healthy(i, false);
        pick_many(1000, counts);
        for (uint32_t i = 0; i < 10; i++)
            assert_int_equal(counts[i] > 0, i >= 5);
        assert_false(is_flagged(DP_FLAG_PANIC));
        set_healthy(5, false);
        pick_many(1000, counts);
        for (uint32_t i = 0; i < 10; i++)
            assert_in_range(counts[i], 20, 400);
        assert_true(is_flagged(DP_FLAG_PANIC));
        set_healthy(5, true);
        pick_many(1000, counts);
        assert_int_equal(counts[0], 0);
        assert_false(is_flagged(DP_FLAG_PANIC));
        for (uint32_t i = 0; i < 5; i++)
            set_healthy(i, true);
        pick_many(1000, counts);
        assert_true(counts[0] > 0);
    }
}

static void test_without_panic_there_is_none_when_none_is_available(void **state)
{
    uint32_t counts[MANY], sum = 0;

    (void)state;
    policy.panic_share = 0 * PERCENT;
    for (size_t k = 0; k < COUNT(balances); k++) {
        use(balances[k], 10);
        for (uint32_t i = 0; i < 9; i++)
            set_healthy(i, false);
        pick_many(100, counts);
        assert_int_equal(counts[9], 100);
        assert_false(is_flagged(DP_FLAG_UNAVAILABLE));
        set_healthy(9, false);
        pick_many(100, counts);
        for (uint32_t i = 0; i < 10; i++)
            sum += counts[i];
        assert_int_equal(sum, 0);
        assert_true(is_flagged(DP_FLAG_UNAVAILABLE));
        for (uint32_t i = 0; i < 10; i++)
            set_healthy(i, true);
    }
}

/* Nobody tells that the time is over. */
static void test_panic_ends_with_the_ejections(void **state)
{
    struct availability availability;
    uint32_t counts[MANY];

    (void)state;
    use(DP_ROUND_ROBIN, 4);
    for (uint32_t i = 0; i < 3; i++)
        assert_true(eject(i));
    pick_many(40, counts);
    assert_true(is_flagged(DP_FLAG_PANIC));
    availability = service_availability(service, now_ms);
    assert_int_equal(availability.endpoints, 4);
    assert_int_equal(availability.available, 1);
    assert_true(availability.panic);
    now_ms += 30 * SECOND;
    pick_many(40, counts);
    assert_false(is_flagged(DP_FLAG_PANIC));
    assert_int_equal(counts[0], 10);
}

/* What cannot be connected is passed over in panic, too, while there are others. */
static void test_panic_still_avoids_what_cannot_be_connected(void **state)
{
    struct pick picking = {.since_ms = NOW - 1, .now_ms = NOW, .random = &random_state};

    (void)state;
    use(DP_ROUND_ROBIN, 4);
    for (uint32_t i = 0; i < 4; i++)
        set_healthy(i, false);
    for (uint32_t i = 0; i < 3; i++)
        endpoint_failed(service_endpoint(service, i), NOW);
    for (int i = 0; i < 20; i++)
        assert_int_equal(index_of(service_pick(service, &picking)), 3);
}

/* ---- zones ---- */

static void set_levels(uint32_t first, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        endpoints[i].level = i >= first;
}

static void test_the_preferred_zone_takes_all_it_can(void **state)
{
    uint32_t counts[MANY], elsewhere;

    (void)state;
    set_levels(10, 20);
    use(DP_ROUND_ROBIN, 20);
    pick_many(1000, counts);
    for (uint32_t i = 0; i < 20; i++)
        assert_int_equal(counts[i], i < 10 ? 100 : 0);
    for (uint32_t i = 0; i < 2; i++)
        set_healthy(i, false); /* eight of ten bear all, with 1.4 times their share */
    pick_many(800, counts);
    for (uint32_t i = 0; i < 20; i++)
        assert_int_equal(counts[i], i >= 2 && i < 10 ? 100 : 0);
    assert_false(is_flagged(DP_FLAG_OTHER_ZONE));
    for (uint32_t i = 2; i < 5; i++)
        set_healthy(i, false); /* five of ten bear seven tenths */
    pick_many(10000, counts);
    elsewhere = 0;
    for (uint32_t i = 10; i < 20; i++)
        elsewhere += counts[i];
    assert_in_range(elsewhere, 2700, 3300);
    assert_true(is_flagged(DP_FLAG_OTHER_ZONE));
    for (uint32_t i = 5; i < 10; i++)
        set_healthy(i, false);
    pick_many(1000, counts);
    for (uint32_t i = 0; i < 20; i++)
        assert_int_equal(counts[i], i < 10 ? 0 : 100);
    assert_false(is_flagged(DP_FLAG_PANIC)); /* the others bear all */
}

static void test_where_both_zones_are_down_it_is_panic_in_both(void **state)
{
    uint32_t counts[MANY];

    (void)state;
    set_levels(4, 8);
    use(DP_ROUND_ROBIN, 8);
    for (uint32_t i = 0; i < 8; i++)
        if (i % 4 > 0)
            set_healthy(i, false); /* a quarter each: they bear 35 percent each */
    pick_many(8000, counts);
    for (uint32_t i = 0; i < 8; i++)
        assert_in_range(counts[i], 800, 1200);
    assert_true(is_flagged(DP_FLAG_PANIC));
    for (uint32_t i = 0; i < 8; i++)
        set_healthy(i, false);
    pick_many(800, counts); /* nobody anywhere: as if all were well */
    for (uint32_t i = 0; i < 8; i++)
        assert_int_equal(counts[i], i < 4 ? 200 : 0);
}

/* What was tried, or cannot be connected, is no reason to stay here. */
static void test_another_zone_is_tried_when_this_one_was(void **state)
{
    struct endpoint *tried[4];
    struct pick picking = {
        .since_ms = NOW - 1, .now_ms = NOW, .random = &random_state, .tried = tried};

    (void)state;
    set_levels(2, 4);
    use(DP_RANDOM, 4);
    endpoint_failed(service_endpoint(service, 0), NOW);
    for (; picking.tried_count < 4; picking.tried_count++)
        tried[picking.tried_count] = service_pick(service, &picking);
    assert_int_equal(index_of(tried[0]), 1);
    assert_in_range(index_of(tried[1]), 2, 3);
    assert_in_range(index_of(tried[2]), 2, 3);
    assert_int_equal(index_of(tried[3]), 0);
    assert_null(service_pick(service, &picking));
}

static void test_only_elsewhere_is_as_good_as_here(void **state)
{
    uint32_t counts[MANY];

    (void)state;
    set_levels(0, 4);
    use(DP_ROUND_ROBIN, 4);
    pick_many(40, counts);
    assert_int_equal(counts[0], 10);
    assert_false(is_flagged(DP_FLAG_OTHER_ZONE));
    for (uint32_t i = 0; i < 4; i++)
        set_healthy(i, false);
    pick_many(40, counts);
    assert_int_equal(counts[3], 10);
    assert_true(is_flagged(DP_FLAG_PANIC));
}

/* ---- slow start ---- */

static void test_one_that_joins_begins_with_a_tenth(void **state)
{
    static const uint32_t slow[] = {DP_ROUND_ROBIN, DP_RANDOM, DP_LEAST_REQUESTS, DP_PEAK_EWMA};
    uint32_t counts[MANY];

    (void)state;
    policy.slow_start_ms = 10 * SECOND;
    for (size_t k = 0; k < COUNT(slow); k++) {
        use(slow[k], 9);
        now_ms = clock_ns(CLOCK_MONOTONIC) / NS_PER_MS + 2; /* an endpoint's time is real */
        use(slow[k], 10);
        atomic_store(&service_endpoint(service, 9)->since_ms, now_ms);
        pick_many(10000, counts);
        assert_in_range(counts[9], 40, 200); /* 110 */
        for (uint32_t i = 0; i < 9; i++)
            assert_in_range(counts[i], 800, 1400);
        now_ms += 5 * SECOND;
        pick_many(10000, counts);
        assert_in_range(counts[9], 350, 700); /* 526 */
        now_ms += 5 * SECOND;
        pick_many(10000, counts);
        assert_in_range(counts[9], 800, 1200);
        keeper_release(&service->shared);
        service = NULL;
    }
    use(DP_ROUND_ROBIN, 1);
}

static void test_those_that_come_together_share_alike(void **state)
{
    uint32_t counts[MANY];

    (void)state;
    policy.slow_start_ms = 10 * SECOND;
    use(DP_ROUND_ROBIN, 3);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(atomic_load(&service_endpoint(service, i)->since_ms), 0);
        atomic_store(&service_endpoint(service, i)->since_ms, now_ms); /* after an outage */
    }
    pick_many(9000, counts);
    for (uint32_t i = 0; i < 3; i++)
        assert_in_range(counts[i], 2600, 3400);
}

static void test_who_joins_is_known_by_the_table_before(void **state)
{
    (void)state;
    use(DP_ROUND_ROBIN, 1);
    endpoints[2].warm = 1;
    use(DP_ROUND_ROBIN, 3);
    assert_int_equal(atomic_load(&service_endpoint(service, 0)->since_ms), 0);
    assert_true(atomic_load(&service_endpoint(service, 1)->since_ms) > 0);
    assert_int_equal(atomic_load(&service_endpoint(service, 2)->since_ms), 0);
}

/* ---- latency ---- */

static void test_the_quicker_ones_get_more(void **state)
{
    uint32_t counts[MANY];

    (void)state;
    use(DP_PEAK_EWMA, 4);
    for (uint32_t i = 0; i < 4; i++)
        outliers_note(service, service_endpoint(service, i),
                      &(struct attempt){.latency_ns = (i + 1) * MS}, now_ms);
    pick_many(6000, counts); /* of six pairs the first wins three, the last none */
    assert_in_range(counts[0], 2700, 3300);
    assert_in_range(counts[1], 1700, 2300);
    assert_in_range(counts[2], 800, 1200);
    assert_int_equal(counts[3], 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_only_errors_in_a_row_eject),
        TEST(test_without_detection_nobody_is_ejected),
        TEST(test_each_time_takes_longer_until_it_is_forgotten),
        TEST(test_a_long_ejection_time_is_no_shorter),
        TEST(test_some_stay_but_one_may_always_go),
        TEST(test_more_endpoints_let_more_be_ejected),
        TEST(test_with_too_few_available_all_are_used),
        TEST(test_without_panic_there_is_none_when_none_is_available),
        TEST(test_panic_ends_with_the_ejections),
        TEST(test_panic_still_avoids_what_cannot_be_connected),
        TEST(test_the_preferred_zone_takes_all_it_can),
        TEST(test_where_both_zones_are_down_it_is_panic_in_both),
        TEST(test_another_zone_is_tried_when_this_one_was),
        TEST(test_only_elsewhere_is_as_good_as_here),
        TEST(test_one_that_joins_begins_with_a_tenth),
        TEST(test_those_that_come_together_share_alike),
        TEST(test_who_joins_is_known_by_the_table_before),
        TEST(test_the_quicker_ones_get_more),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
