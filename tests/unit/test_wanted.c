#include "unit.h"

#include <string.h>

#include "failing.h"
#include "l7/wanted.h"

enum { MOST_NOTES = 1024, MOST_WAITING = 4096 };

static struct wanted wanted;

static int set_up(void **state)
{
    (void)state;
    wanted = (struct wanted){.event = -1};
    return 0;
}

static bool tell(unsigned number)
{
    struct dp_wanted what = {.protocol = number};

    return wanted_tell(&wanted, &what);
}

static void test_each_is_taken_once(void **state)
{
    struct dp_wanted taken[8];
    unsigned seen = 0;
    size_t count;

    (void)state;
    assert_int_equal(wanted_take(&wanted, taken, 8), 0);
    for (unsigned i = 0; i < 20; i++)
        assert_true(tell(i));
    while ((count = wanted_take(&wanted, taken, 8)) > 0)
        for (size_t i = 0; i < count; i++)
            seen |= 1u << taken[i].protocol;
    assert_int_equal(seen, (1u << 20) - 1);
    assert_int_equal(atomic_load(&wanted.count), 0);
}

static void test_so_many_are_told_and_no_more_until_they_are_taken(void **state)
{
    struct dp_wanted taken;

    (void)state;
    for (unsigned i = 0; i < MOST_NOTES; i++)
        assert_true(tell(i));
    assert_false(tell(0));
    assert_int_equal(wanted_take(&wanted, &taken, 1), 1);
    assert_true(tell(0));
    assert_false(tell(0));
    wanted_close(&wanted);
    assert_int_equal(atomic_load(&wanted.count), 0);
}

static void test_so_many_wait_and_no_more(void **state)
{
    (void)state;
    for (unsigned i = 0; i < MOST_WAITING; i++)
        assert_true(wanted_enter(&wanted));
    assert_false(wanted_enter(&wanted));
    wanted_leave(&wanted);
    assert_true(wanted_enter(&wanted));
}

static void test_out_of_memory_nothing_is_told(void **state)
{
    (void)state;
    failing_set(1);
    assert_false(tell(1));
    assert_true(failing_take());
    assert_int_equal(atomic_load(&wanted.count), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_each_is_taken_once, set_up),
        cmocka_unit_test_setup(test_so_many_are_told_and_no_more_until_they_are_taken, set_up),
        cmocka_unit_test_setup(test_so_many_wait_and_no_more, set_up),
        cmocka_unit_test_setup(test_out_of_memory_nothing_is_told, set_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
