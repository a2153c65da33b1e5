#include "unit.h"

#include <pthread.h>

#include "base/counter.h"

enum { ADDITIONS = 200000 };

static counter sum;
static atomic_bool over;

static void *read_all(void *argument)
{
    uint64_t before = 0, now = 0;

    (void)argument;
    while (!atomic_load(&over)) {
        now = counter_read(&sum);
        if (now < before)
            return &sum;
        before = now;
    }
    return NULL;
}

static void test_a_reader_sees_a_sum_grow_that_another_thread_writes(void **state)
{
    pthread_t reader;
    void *wrong;

    (void)state;
    assert_int_equal(pthread_create(&reader, NULL, read_all, NULL), 0);
    for (int i = 0; i < ADDITIONS; i++)
        counter_add(&sum, 3);
    atomic_store(&over, true);
    pthread_join(reader, &wrong);
    assert_null(wrong);
    assert_int_equal(counter_read(&sum), 3 * ADDITIONS);
}

static void test_what_was_added_can_be_taken_back(void **state)
{
    counter buffers = 0;

    (void)state;
    counter_add(&buffers, 5);
    counter_add(&buffers, -2);
    assert_int_equal(counter_read(&buffers), 3);
    counter_add(&buffers, (int64_t)1 << 40);
    counter_add(&buffers, -3);
    assert_int_equal(counter_read(&buffers), UINT64_C(1) << 40);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_reader_sees_a_sum_grow_that_another_thread_writes),
        cmocka_unit_test(test_what_was_added_can_be_taken_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
