#include "unit.h"

#include "upstream/endpoint.h"

static struct map endpoints;
static const struct mosnhook_address address = {.ip = {[10] = 0xff, [11] = 0xff, [12] = 10}};

static int tear_down(void **state)
{
    (void)state;
    map_close(&endpoints); /* nothing is left */
    return 0;
}

static void test_an_address_is_one_endpoint_for_all_of_a_scope(void **state)
{
    struct mosnhook_address other = address;
    struct endpoint *one = endpoint_intern(&endpoints, 0, &address);
    struct endpoint *elsewhere = endpoint_intern(&endpoints, 1, &address), *next;

    (void)state;
    other.port++;
    next = endpoint_intern(&endpoints, 0, &other);
    assert_ptr_equal(endpoint_intern(&endpoints, 0, &address), one);
    assert_ptr_not_equal(elsewhere, one);
    assert_ptr_not_equal(next, one);
    endpoint_failed(one, 5);
    endpoint_release(&endpoints, one);
    assert_true(endpoint_is_ejected(one, 4)); /* somebody still has it */
    assert_false(endpoint_is_ejected(elsewhere, 4));
    assert_int_equal(endpoints.count, 3);
    endpoint_release(&endpoints, one);
    endpoint_release(&endpoints, elsewhere);
    endpoint_release(&endpoints, next);
    assert_int_equal(endpoints.count, 0);
}

static void test_a_failure_holds_until_a_success_from_after_it(void **state)
{
    struct endpoint *endpoint = endpoint_intern(&endpoints, 0, &address);

    (void)state;
    assert_false(endpoint_is_ejected(endpoint, 0));
    endpoint_failed(endpoint, 100);
    assert_true(endpoint_is_ejected(endpoint, 99));
    assert_false(endpoint_is_ejected(endpoint, 100)); /* it was long enough */
    endpoint_succeeded(endpoint, 100);                /* of what began before */
    assert_true(endpoint_is_ejected(endpoint, 99));
    endpoint_succeeded(endpoint, 101);
    assert_false(endpoint_is_ejected(endpoint, 0));
    endpoint_failed(NULL, 1);
    endpoint_succeeded(NULL, 1);
    endpoint_release(&endpoints, endpoint);
}

static void release(void *endpoint)
{
    endpoint_release(&endpoints, endpoint);
}

static void test_one_that_connections_have_is_not_freed(void **state)
{
    struct endpoint *endpoint = endpoint_intern(&endpoints, 0, &address);

    (void)state;
    atomic_fetch_add(&endpoint->active, 1);
    assert_true(aborts(release, endpoint));
    atomic_fetch_sub(&endpoint->active, 1);
    endpoint_release(&endpoints, endpoint);
}

static void test_whichever_allocation_fails_nothing_is_left(void **state)
{
    struct endpoint *endpoint = NULL;
    unsigned number;

    (void)state;
    for (number = 1; !endpoint; number++) {
        failing_set(number);
        endpoint = endpoint_intern(&endpoints, 0, &address);
        assert_int_equal(failing_take(), endpoint == NULL);
        assert_int_equal(endpoints.count, endpoint != NULL);
    }
    assert_int_equal(number - 1, 3); /* the endpoint, the map */
    endpoint_release(&endpoints, endpoint);
}

#define TEST(name) cmocka_unit_test_teardown(name, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_an_address_is_one_endpoint_for_all_of_a_scope),
        TEST(test_a_failure_holds_until_a_success_from_after_it),
        TEST(test_one_that_connections_have_is_not_freed),
        TEST(test_whichever_allocation_fails_nothing_is_left),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
