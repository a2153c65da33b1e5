#include "unit.h"

#include <string.h>

#include "upstream/latency.h"

enum { MS = 1000 * 1000, NOW = 5000 };

static struct endpoint endpoint;

static int set_up(void **state)
{
    (void)state;
    memset(&endpoint, 0, sizeof endpoint);
    return 0;
}

/* A millisecond is a thousand. */
static uint64_t cost(uint64_t now_ms)
{
    return latency_cost(&endpoint, now_ms);
}

static void test_an_unknown_one_is_asked_once_at_a_time(void **state)
{
    (void)state;
    assert_int_equal(cost(NOW), 0);
    atomic_store(&endpoint.active, 1);
    assert_true(cost(NOW) >= 1000 * 1000); /* more than any that answers within a second */
}

static void test_it_costs_what_it_takes_times_what_waits(void **state)
{
    (void)state;
    latency_add(&endpoint, 10 * MS, false, NOW);
    assert_in_range(cost(NOW), 10000, 10010);
    atomic_store(&endpoint.active, 3);
    assert_in_range(cost(NOW), 40000, 40040);
}

static void test_a_slow_answer_counts_at_once_and_quick_ones_slowly(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 1000; i++)
        latency_add(&endpoint, MS, false, NOW + i);
    latency_add(&endpoint, 500 * MS, false, NOW + 1000);
    assert_in_range(cost(NOW + 1000), 500000, 500100);
    latency_add(&endpoint, MS, false, NOW + 1001);
    assert_in_range(cost(NOW + 1001), 499000, 500000);
    for (uint64_t i = 0; i < 60; i++)
        latency_add(&endpoint, MS, false, NOW + 2000 + 1000 * i);
    assert_in_range(cost(NOW + 61000), 1000, 20000);
}

static void test_what_is_long_ago_counts_less(void **state)
{
    uint64_t before = UINT64_MAX;

    (void)state;
    latency_add(&endpoint, 500 * MS, false, NOW);
    for (uint64_t age = 0; age < 1000 * 1000; age = 2 * age + 1000) {
        assert_true(cost(NOW + age) < before);
        before = cost(NOW + age);
    }
    assert_in_range(before, 1, 10000);
    assert_in_range(cost(NOW - 1), 500000, 500100); /* another worker's turn began later */
}

/* Else one that refuses all at once would get all. */
static void test_failures_make_nobody_look_quick(void **state)
{
    (void)state;
    latency_add(&endpoint, 100 * MS, false, NOW);
    for (uint64_t i = 0; i < 1000; i++)
        latency_add(&endpoint, MS / 10, true, NOW + i);
    assert_in_range(cost(NOW + 999), 100000, 100100);
    latency_add(&endpoint, 300 * MS, true, NOW + 1000);
    assert_in_range(cost(NOW + 1000), 300000, 300100);
}

static void test_times_beyond_measure(void **state)
{
    (void)state;
    latency_add(&endpoint, UINT64_MAX, false, UINT64_MAX);
    atomic_store(&endpoint.active, 100000);
    assert_true(cost(UINT64_MAX) > UINT32_MAX);
    assert_true(cost(0) > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_an_unknown_one_is_asked_once_at_a_time, set_up),
        cmocka_unit_test_setup(test_it_costs_what_it_takes_times_what_waits, set_up),
        cmocka_unit_test_setup(test_a_slow_answer_counts_at_once_and_quick_ones_slowly, set_up),
        cmocka_unit_test_setup(test_what_is_long_ago_counts_less, set_up),
        cmocka_unit_test_setup(test_failures_make_nobody_look_quick, set_up),
        cmocka_unit_test_setup(test_times_beyond_measure, set_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
