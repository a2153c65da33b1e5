#include "unit.h"

#include <pthread.h>
#include <string.h>

#include "upstream/resilience.h"

#define MS UINT64_C(1000000)
#define SECOND (1000 * MS)

static struct load load;
static struct dp_resilience resilience;

static int set_up(void **state)
{
    (void)state;
    memset(&load, 0, sizeof load);
    memset(&resilience, 0, sizeof resilience);
    return 0;
}

static unsigned take_tokens(uint64_t now_ns)
{
    unsigned taken = 0;

    while (load_take_token(&load, &resilience, now_ns))
        taken++;
    return taken;
}

static void set_rate(uint32_t requests, uint32_t ms, uint32_t burst)
{
    resilience.rate_requests = requests;
    resilience.rate_ms = ms;
    resilience.rate_burst = burst;
}

static void test_a_full_bucket_has_its_burst_and_no_more(void **state)
{
    (void)state;
    set_rate(1000, 1000, 200);
    assert_true(load_has_token(&load, &resilience, 5 * SECOND));
    assert_int_equal(take_tokens(5 * SECOND), 200);
    assert_false(load_has_token(&load, &resilience, 5 * SECOND + MS - 1));
    assert_int_equal(take_tokens(5 * SECOND + MS - 1), 0);
    assert_int_equal(take_tokens(5 * SECOND + MS), 1);
    assert_int_equal(take_tokens(5 * SECOND + 11 * MS), 10);
    assert_int_equal(take_tokens(500 * SECOND), 200); /* however long there were none */
}

static void test_tokens_come_back_at_the_rate(void **state)
{
    static const uint32_t rates[][2] = {
        {3, 1000}, {7, 3000}, {1000, 1000}, {9999, 100}, {1500000, 1000}, {1, 60000},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rates / sizeof *rates; i++) {
        uint64_t per_ns = rates[i][1] * MS, taken = 0;

        memset(&load, 0, sizeof load);
        set_rate(rates[i][0], rates[i][1], rates[i][0]);
        take_tokens(SECOND);
        for (int part = 1; part <= 1000; part++)
            taken += take_tokens(SECOND + part * per_ns / 50);
        assert_in_range(taken, rates[i][0] * 20 * 0.999 - 1, rates[i][0] * 20 * 1.001 + 1);
    }
}

static void test_a_change_of_the_rate_takes_effect_with_the_next_request(void **state)
{
    (void)state;
    set_rate(10, 1000, 10);
    assert_int_equal(take_tokens(SECOND), 10);
    set_rate(100, 1000, 100);
    assert_int_equal(take_tokens(2 * SECOND), 100);
    set_rate(100, 1000, 5);
    assert_int_equal(take_tokens(2 * SECOND), 0);
    assert_int_equal(take_tokens(4 * SECOND), 5);
}

/* Time that goes back, as another thread's turn may have begun earlier, gives nothing away. */
static void test_an_earlier_moment_gives_no_token(void **state)
{
    (void)state;
    set_rate(10, 1000, 10);
    assert_int_equal(take_tokens(2 * SECOND), 10);
    assert_int_equal(take_tokens(SECOND), 0);
    assert_int_equal(take_tokens(2 * SECOND + 100 * MS), 1);
}

enum { THREADS = 4, TRIES = 200000 };

static void *take_many(void *count)
{
    for (int i = 0; i < TRIES; i++)
        *(unsigned *)count += load_take_token(&load, &resilience, SECOND);
    return NULL;
}

static void test_threads_share_the_bucket(void **state)
{
    pthread_t threads[THREADS];
    unsigned counts[THREADS] = {0}, sum = 0;

    (void)state;
    set_rate(300000, 1000, 300000);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, take_many, &counts[i]), 0);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        sum += counts[i];
    }
    assert_int_equal(sum, 300000);
}

static void test_requests_are_bounded(void **state)
{
    (void)state;
    resilience.requests = 2;
    assert_true(load_enter_request(&load, &resilience));
    assert_true(load_enter_request(&load, &resilience));
    assert_false(load_enter_request(&load, &resilience));
    load_leave_request(&load);
    assert_true(load_enter_request(&load, &resilience));
    resilience.requests = 1; /* at a reload: those that are there go on */
    assert_false(load_enter_request(&load, &resilience));
    load_leave_request(&load);
    assert_false(load_enter_request(&load, &resilience));
    load_leave_request(&load);
    assert_true(load_enter_request(&load, &resilience));
}

static void test_retries_are_a_share_of_the_requests(void **state)
{
    unsigned retries = 0;

    (void)state;
    resilience.budget = DP_SHARES / 5;
    resilience.least_retries = 3;
    while (load_enter_retry(&load, &resilience, 100))
        retries++;
    assert_int_equal(retries, 20);
    load_leave_retry(&load);
    assert_false(load_enter_retry(&load, &resilience, 99));
    assert_true(load_enter_retry(&load, &resilience, 100));
}

static void test_some_retries_are_possible_with_few_requests(void **state)
{
    unsigned retries = 0;

    (void)state;
    resilience.budget = DP_SHARES / 5;
    resilience.least_retries = 3;
    while (load_enter_retry(&load, &resilience, 1))
        retries++;
    assert_int_equal(retries, 3);
    resilience.budget = resilience.least_retries = 0;
    assert_false(load_enter_retry(&load, &resilience, 1000));
}

static void test_what_may_have_been_done_is_not_done_twice(void **state)
{
    (void)state;
    resilience.retry_on = (1u << DP_RETRIES) - 1;
    resilience.statuses[503 / 8] |= 1u << 503 % 8;
    for (unsigned why = 0; why < DP_RETRIES; why++)
        assert_true(retry_is_for(&resilience, why, true));
    assert_true(retry_is_for(&resilience, DP_RETRY_CONNECT_FAILURE, false));
    assert_true(retry_is_for(&resilience, DP_RETRY_REFUSED, false));
    assert_true(retry_is_for(&resilience, DP_RETRY_RESET_UNSENT, false));
    assert_false(retry_is_for(&resilience, DP_RETRY_RESET, false));
    assert_false(retry_is_for(&resilience, DP_RETRY_ATTEMPT_TIMEOUT, false));
    assert_true(retry_is_for_status(&resilience, 503, true));
    assert_false(retry_is_for_status(&resilience, 503, false));
}

static void test_only_what_is_named_is_a_reason(void **state)
{
    (void)state;
    resilience.retry_on = 1u << DP_RETRY_RESET;
    resilience.statuses[503 / 8] |= 1u << 503 % 8;
    assert_false(retry_is_for(&resilience, DP_RETRY_CONNECT_FAILURE, true));
    assert_true(retry_is_for(&resilience, DP_RETRY_RESET, true));
    assert_false(retry_is_for_status(&resilience, 502, true));
    assert_false(retry_is_for_status(&resilience, 504, true));
    assert_false(retry_is_for_status(&resilience, UINT32_MAX, true));
}

static void test_a_retry_waits_at_random_and_longer_each_time(void **state)
{
    static const uint32_t bounds[] = {25, 75, 175, 250, 250};
    uint64_t random = 1;

    (void)state;
    resilience.backoff_ms = 25;
    resilience.longest_backoff_ms = 250;
    for (uint32_t number = 1; number <= 5; number++) {
        uint32_t least = UINT32_MAX, most = 0;

        for (int i = 0; i < 10000; i++) {
            uint32_t ms = retry_backoff_ms(&resilience, number, &random);

            least = ms < least ? ms : least;
            most = ms > most ? ms : most;
        }
        assert_int_equal(least, 0);
        assert_int_equal(most, bounds[number - 1] - 1);
    }
    assert_in_range(retry_backoff_ms(&resilience, 1000, &random), 0, 249);
}

static void test_shares_are_met_as_often_as_they_say(void **state)
{
    static const uint32_t shares[] = {0, 5000, DP_SHARES / 10, DP_SHARES / 2, DP_SHARES};
    uint64_t random = 1;

    (void)state;
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
        uint64_t met = 0, expected = shares[i];

        for (int k = 0; k < DP_SHARES; k++)
            met += share_is_met(shares[i], &random);
        assert_in_range(met, expected - expected / 10, expected + expected / 10);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_a_full_bucket_has_its_burst_and_no_more, set_up),
        cmocka_unit_test_setup(test_tokens_come_back_at_the_rate, set_up),
        cmocka_unit_test_setup(test_a_change_of_the_rate_takes_effect_with_the_next_request,
                               set_up),
        cmocka_unit_test_setup(test_an_earlier_moment_gives_no_token, set_up),
        cmocka_unit_test_setup(test_threads_share_the_bucket, set_up),
        cmocka_unit_test_setup(test_requests_are_bounded, set_up),
        cmocka_unit_test_setup(test_retries_are_a_share_of_the_requests, set_up),
        cmocka_unit_test_setup(test_some_retries_are_possible_with_few_requests, set_up),
        cmocka_unit_test_setup(test_what_may_have_been_done_is_not_done_twice, set_up),
        cmocka_unit_test_setup(test_only_what_is_named_is_a_reason, set_up),
        cmocka_unit_test_setup(test_a_retry_waits_at_random_and_longer_each_time, set_up),
        cmocka_unit_test_setup(test_shares_are_met_as_often_as_they_say, set_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
