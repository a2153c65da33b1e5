/* A data plane that there is no memory for. */
#include "api/dataplane.h"

#include <errno.h>

#include "unit.h"

static const struct dp_timeouts timeouts = {1000, 1000, 1000, 1000, 1000};

/* Whichever allocation fails. */
static void test_creation_without_memory_leaves_nothing_open(void **state)
{
    bool failed = true;

    (void)state;
    for (unsigned number = 1; failed; number++) {
        int before = open_descriptors();
        struct dp *dp;

        failing_set(number);
        dp = dp_create(2, &timeouts);
        assert_true(dp || errno == ENOMEM);
        failed = failing_take();
        assert_int_equal(dp == NULL, failed);
        if (dp)
            dp_destroy(dp);
        assert_int_equal(open_descriptors(), before);
    }
}

static void test_start_without_memory_leaves_nothing_open(void **state)
{
    static const struct dp_listener settings = {.transport = DP_TRANSPORT_HEADER};
    bool failed = true;

    (void)state;
    for (unsigned number = 1; failed; number++) {
        struct mosnhook_address address;
        int before = open_descriptors(), result;
        struct dp *dp = dp_create(2, &timeouts);

        assert_non_null(dp);
        assert_int_equal(dp_add_listener(dp, listen_on_loopback(&address), &settings), 0);
        failing_set(number);
        result = dp_start(dp);
        failed = failing_take();
        assert_int_equal(result, failed ? -ENOMEM : 0);
        dp_stop(dp);
        dp_destroy(dp);
        assert_int_equal(open_descriptors(), before);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_creation_without_memory_leaves_nothing_open),
        cmocka_unit_test(test_start_without_memory_leaves_nothing_open),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
