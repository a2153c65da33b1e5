#include "unit.h"

#include <errno.h>

#include "upstream/service.h"

enum { WORKERS = 2, MANY = 100 };

static struct registry registry;
static struct standings standings;
static struct service *service;
static struct dp_endpoint endpoints[MANY];
static uint64_t random_state;
static enum dp_role role;

static int set_up(void **state)
{
    (void)state;
    registry_init(&registry, -1);
    standings_init(&standings, WORKERS);
    random_state = 4711;
    role = DP_ROLE_CONFIGURED;
    service = NULL;
    for (uint16_t i = 0; i < MANY; i++)
        endpoints[i] =
            (struct dp_endpoint){.address = on_loopback((uint16_t)(1000 + i)), .weight = 1};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    if (service)
        keeper_release(&service->shared);
    assert_int_equal(registry.clusters.count, 0);
    assert_int_equal(registry.endpoints.count, 0);
    standings_close(&standings);
    registry_close(&registry);
    return 0;
}

static const struct dp_resilience *resilience;

static struct service *intern(uint32_t number, uint32_t balance, uint32_t count)
{
    struct dp_service settings = {.number = number,
                                  .protocol = DP_BOLT,
                                  .balance = balance,
                                  .endpoint_count = count,
                                  .role = role};
    struct service_plan plan = {&settings, TEXT("orders"), TEXT("x-user"), endpoints, resilience};

    return service_intern(&registry, &standings, &plan);
}

static void use(uint32_t balance, uint32_t count)
{
    struct service *next = intern(1, balance, count);

    assert_non_null(next);
    if (service)
        keeper_release(&service->shared);
    service = next;
}

static uint32_t index_of(const struct endpoint *endpoint)
{
    return endpoint->address.port - 1000u;
}

static struct endpoint *pick_untried(uint64_t hash, uint64_t since_ms,
                                     struct endpoint *const *tried, uint32_t count)
{
    struct pick picking = {.since_ms = since_ms,
                           .random = &random_state,
                           .hash = hash,
                           .tried = tried,
                           .tried_count = count};

    return service_pick(service, &picking);
}

static uint32_t pick(uint64_t hash, uint64_t since_ms)
{
    return index_of(pick_untried(hash, since_ms, NULL, 0));
}

static void pick_many(uint32_t picks, uint32_t *counts, uint64_t since_ms)
{
    memset(counts, 0, MANY * sizeof *counts);
    for (uint32_t i = 0; i < picks; i++)
        counts[pick(0, since_ms)]++;
}

static void test_what_it_says_of_failures_is_its_own(void **state)
{
    struct dp_resilience one = {.retries = 1, .mirror_share = 5, .mirror = 7}, other = one;
    struct service *before;

    (void)state;
    resilience = &one;
    use(DP_ROUND_ROBIN, 3);
    before = service;
    one.mirror = 8; /* the same service at another place */
    use(DP_ROUND_ROBIN, 3);
    assert_ptr_equal(service, before);
    other.retries = 2;
    resilience = &other;
    use(DP_ROUND_ROBIN, 3);
    assert_int_equal(service->resilience.retries, 2);
    resilience = NULL;
    use(DP_ROUND_ROBIN, 3);
    assert_int_equal(service->resilience.retries, 0);
}

static void test_turns_go_by_weight_and_come_evenly(void **state)
{
    uint32_t counts[MANY], last = MANY, in_a_row = 0;

    (void)state;
    endpoints[0].weight = 50;
    endpoints[1].weight = 10;
    endpoints[2].weight = 10;
    use(DP_ROUND_ROBIN, 3);
    pick_many(7, counts, UINT64_MAX);
    assert_int_equal(counts[0], 5);
    assert_int_equal(counts[1], 1);
    assert_int_equal(counts[2], 1);
    for (uint32_t i = 0; i < 70; i++) {
        uint32_t at = pick(0, UINT64_MAX);

        in_a_row = at == last ? in_a_row + 1 : 1;
        last = at;
        assert_true(in_a_row <= 4); /* of the one that has five of seven */
    }
}

static void test_very_different_weights_still_give_everybody_a_turn(void **state)
{
    uint32_t counts[MANY];

    (void)state;
    endpoints[0].weight = UINT32_MAX;
    endpoints[1].weight = UINT32_MAX / 2;
    use(DP_ROUND_ROBIN, 3);
    pick_many(65536, counts, UINT64_MAX);
    assert_in_range(counts[2], 1, 2);
    assert_in_range(counts[0], 43680, 43700);
}

static void test_chance_goes_by_weight(void **state)
{
    uint32_t counts[MANY];

    (void)state;
    endpoints[1].weight = 3;
    use(DP_RANDOM, 2);
    pick_many(40000, counts, UINT64_MAX);
    assert_in_range(counts[0], 9500, 10500); /* five standard deviations are 433 */
}

static void test_busy_ones_are_weighed(void **state)
{
    (void)state;
    endpoints[1].weight = 3;
    use(DP_LEAST_REQUESTS, 2);
    for (uint32_t i = 0; i < 400; i++)
        atomic_fetch_add(&service->cluster->endpoints[pick(0, UINT64_MAX)]->active, 1);
    assert_in_range(atomic_load(&service->cluster->endpoints[0]->active), 90, 110);
    for (uint32_t i = 0; i < 2; i++)
        atomic_store(&service->cluster->endpoints[i]->active, 0);
}

static uint64_t hash_at(uint32_t i)
{
    return (uint64_t)i * UINT64_C(0x9e3779b97f4a7c15);
}

static void test_a_ring_moves_little_when_it_changes(void **state)
{
    enum { HASHES = 20000 };
    static uint8_t before[HASHES];
    uint32_t moved = 0, counts[MANY] = {0};

    (void)state;
    use(DP_RING_HASH, 20);
    for (uint32_t i = 0; i < HASHES; i++) {
        before[i] = (uint8_t)pick(hash_at(i), UINT64_MAX);
        counts[before[i]]++;
        assert_int_equal(pick(hash_at(i), UINT64_MAX), before[i]);
    }
    for (uint32_t i = 0; i < 20; i++)
        assert_in_range(counts[i], 600, 1500); /* of a thousand */
    use(DP_RING_HASH, 21);
    for (uint32_t i = 0; i < HASHES; i++) {
        uint32_t now = pick(hash_at(i), UINT64_MAX);

        if (now != before[i])
            assert_int_equal(now, 20); /* only what the new one has got */
        moved += now != before[i];
    }
    assert_in_range(moved, HASHES / 40, HASHES / 12);
}

static void test_a_ring_goes_by_weight(void **state)
{
    uint32_t counts[MANY] = {0};

    (void)state;
    endpoints[0].weight = 4;
    use(DP_RING_HASH, 4);
    for (uint32_t i = 0; i < 7000; i++)
        counts[pick(hash_at(i), UINT64_MAX)]++;
    assert_in_range(counts[0], 3400, 4600);
}

static const uint32_t balances[] = {DP_ROUND_ROBIN, DP_RANDOM, DP_LEAST_REQUESTS,
                                    DP_RING_HASH,   DP_MAGLEV, DP_PEAK_EWMA};

static void test_the_ejected_are_passed_over_while_there_are_others(void **state)
{
    (void)state;
    for (size_t k = 0; k < COUNT(balances); k++) {
        bool seen[MANY] = {false};

        use(balances[k], 30);
        for (uint32_t i = 0; i < 29; i++)
            endpoint_failed(service->cluster->endpoints[i], 1000);
        for (uint32_t i = 0; i < 200; i++)
            assert_int_equal(pick(hash_at(i), 999), 29);
        endpoint_failed(service->cluster->endpoints[29], 1000);
        for (uint32_t i = 0; i < 1000; i++)
            seen[pick(hash_at(i), 999)] = true;
        for (uint32_t i = 0; i < 30; i++)
            assert_true(seen[i]);
        for (uint32_t i = 0; i < 30; i++)
            endpoint_succeeded(service->cluster->endpoints[i], UINT64_MAX);
    }
}

/* The ones that are well first. */
static void test_each_one_is_tried_once(void **state)
{
    (void)state;
    endpoints[3].weight = 7;
    for (size_t k = 0; k < COUNT(balances); k++) {
        struct endpoint *tried[10];

        use(balances[k], 10);
        for (uint32_t i = 5; i < 10; i++)
            endpoint_failed(service->cluster->endpoints[i], 1000);
        for (uint32_t i = 0; i < 10; i++) {
            tried[i] = pick_untried(77, 999, tried, i);
            assert_non_null(tried[i]);
            for (uint32_t j = 0; j < i; j++)
                assert_ptr_not_equal(tried[i], tried[j]);
            assert_int_equal(index_of(tried[i]) >= 5, i >= 5);
        }
        assert_null(pick_untried(77, 999, tried, 10));
        for (uint32_t i = 0; i < 10; i++)
            endpoint_succeeded(service->cluster->endpoints[i], UINT64_MAX);
    }
}

static void test_a_service_without_endpoints_has_none_to_pick(void **state)
{
    (void)state;
    use(DP_ROUND_ROBIN, 0);
    assert_null(pick_untried(0, 0, NULL, 0));
}

static void test_what_has_not_changed_is_the_same(void **state)
{
    struct service *again;

    (void)state;
    endpoints[0].weight = 2;
    use(DP_ROUND_ROBIN, 2);
    again = intern(1, DP_ROUND_ROBIN, 2);
    assert_ptr_equal(again, service);
    keeper_release(&again->shared);
    endpoints[0].weight = 3;
    again = intern(1, DP_ROUND_ROBIN, 2);
    assert_ptr_not_equal(again, service);
    assert_ptr_not_equal(again->cluster, service->cluster);
    keeper_release(&again->shared);
}

static void test_what_is_known_outlives_a_change(void **state)
{
    struct service *old, *other;
    struct endpoint *endpoint;
    struct standing *standing;

    (void)state;
    use(DP_ROUND_ROBIN, 2);
    assert_int_equal(pick(0, UINT64_MAX), 0);
    old = service;
    shared_reference(&old->shared); /* by a request */
    standing = service->standing;
    endpoint = service->cluster->endpoints[1];
    assert_null(endpoint_tallies(endpoint)); /* no request has got there */
    atomic_store(&endpoint->active, 3);
    counter_add(&endpoint_tally(endpoint, 1)->attempts, 5);
    use(DP_ROUND_ROBIN, 3);
    assert_ptr_not_equal(service, old);
    assert_ptr_equal(service->standing, standing);
    assert_ptr_equal(service->cluster->endpoints[1], endpoint);
    assert_int_equal(counter_read(&endpoint_tallies(endpoint)[1].attempts), 5);
    assert_int_equal(pick(0, UINT64_MAX), 1); /* it goes on with its turns */
    other = intern(2, DP_ROUND_ROBIN, 3);
    assert_ptr_not_equal(other->cluster->endpoints[1], endpoint); /* another service's own */
    assert_ptr_not_equal(other->standing, standing);
    keeper_release(&other->shared);
    atomic_store(&endpoint->active, 0);
    keeper_release(&old->shared);
    keeper_release(&service->shared);
    service = NULL;
    assert_int_equal(registry.endpoints.count, 0);
    use(DP_ROUND_ROBIN, 1);
    assert_ptr_equal(service->standing, standing); /* that stays, whatever happens */
}

static void test_a_number_keeps_its_name(void **state)
{
    struct dp_service settings = {.number = 1, .protocol = DP_BOLT};
    struct service_plan plan = {&settings, TEXT("other"), {NULL, 0}, NULL, NULL};

    (void)state;
    use(DP_ROUND_ROBIN, 1);
    assert_null(service_intern(&registry, &standings, &plan));
    assert_int_equal(errno, EINVAL);
}

/* Whatever the names are that applications subscribe, for ever. */
static void test_what_was_found_goes_with_the_last_that_has_it(void **state)
{
    struct service *older;

    (void)state;
    role = DP_ROLE_SUBSCRIBED;
    for (uint32_t number = 1; number < 100; number++) {
        keeper_release(&intern(number, DP_ROUND_ROBIN, 2)->shared);
        assert_int_equal(standings.map.count, 0);
        assert_int_equal(standings.tallies.taken, 0);
    }
    use(DP_ROUND_ROBIN, 1);
    counter_add(&service->standing->tallies[1].statuses[2], 7);
    older = service;
    shared_reference(&older->shared); /* as a request that is under way */
    use(DP_ROUND_ROBIN, 2);
    assert_ptr_equal(service->standing, older->standing);
    keeper_release(&service->shared);
    service = NULL;
    assert_int_equal(counter_read(&older->standing->tallies[1].statuses[2]), 7);
    use(DP_ROUND_ROBIN, 2); /* it is back before the request has ended */
    assert_ptr_equal(service->standing, older->standing);
    keeper_release(&older->shared);
    assert_int_equal(standings.map.count, 1);
    keeper_release(&service->shared);
    service = NULL;
    assert_null(standings.first);
    assert_int_equal(standings.map.count, 0);
}

static void test_what_is_found_leaves_the_others_alone(void **state)
{
    struct service *found[3];

    (void)state;
    use(DP_ROUND_ROBIN, 1);
    role = DP_ROLE_PUBLISHED;
    for (uint32_t i = 0; i < 3; i++)
        found[i] = intern(2 + i, DP_ROUND_ROBIN, 1);
    keeper_release(&found[1]->shared);
    keeper_release(&found[2]->shared);
    keeper_release(&found[0]->shared);
    assert_ptr_equal(standings.first, service->standing);
    assert_null(standings.first->next);
}

static void test_whichever_allocation_fails_nothing_is_left(void **state)
{
    bool failed = true;

    (void)state;
    role = DP_ROLE_SUBSCRIBED;
    endpoints[2].weight = 9;
    for (unsigned number = 1; failed; number++) {
        struct service *made;

        failing_set(number);
        made = intern(number, number % 2 ? DP_RING_HASH : DP_MAGLEV, 40);
        failed = failing_take();
        assert_true(made || failed);
        if (made)
            keeper_release(&made->shared);
        assert_int_equal(registry.clusters.count, 0);
        assert_int_equal(registry.endpoints.count, 0);
        assert_null(standings.first);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_what_it_says_of_failures_is_its_own),
        TEST(test_turns_go_by_weight_and_come_evenly),
        TEST(test_very_different_weights_still_give_everybody_a_turn),
        TEST(test_chance_goes_by_weight),
        TEST(test_busy_ones_are_weighed),
        TEST(test_a_ring_moves_little_when_it_changes),
        TEST(test_a_ring_goes_by_weight),
        TEST(test_the_ejected_are_passed_over_while_there_are_others),
        TEST(test_each_one_is_tried_once),
        TEST(test_a_service_without_endpoints_has_none_to_pick),
        TEST(test_what_has_not_changed_is_the_same),
        TEST(test_what_is_known_outlives_a_change),
        TEST(test_a_number_keeps_its_name),
        TEST(test_what_was_found_goes_with_the_last_that_has_it),
        TEST(test_what_is_found_leaves_the_others_alone),
        TEST(test_whichever_allocation_fails_nothing_is_left),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
