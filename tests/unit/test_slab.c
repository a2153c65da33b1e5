#include "unit.h"

#include <string.h>

#include "base/slab.h"

enum { MANY = 5000, SIZE = 1000 };

static struct slab slab;

static void test_each_object_is_one_of_its_own_and_all_zero(void **state)
{
    static uint8_t *objects[MANY], zeros[SIZE];

    (void)state;
    slab_init(&slab, SIZE);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < MANY; i++) {
            objects[i] = slab_take(&slab);
            assert_non_null(objects[i]);
            assert_int_equal((uintptr_t)objects[i] % 64, 0);
            assert_memory_equal(objects[i], zeros, SIZE);
            memset(objects[i], i, SIZE);
        }
        for (int i = 0; i < MANY; i++) {
            for (int k = 0; k < SIZE; k += 37)
                assert_int_equal(objects[i][k], (uint8_t)i);
            slab_give(&slab, objects[i]);
        }
    }
    slab_close(&slab);
}

static void test_what_was_given_back_is_used_again(void **state)
{
    struct slab_chunk *chunks;
    void *first;

    (void)state;
    slab_init(&slab, SIZE);
    first = slab_take(&slab);
    chunks = slab.chunks;
    slab_give(&slab, first);
    slab_give(&slab, NULL);
    for (int i = 0; i < MANY; i++) {
        assert_ptr_equal(slab_take(&slab), first);
        slab_give(&slab, first);
    }
    assert_ptr_equal(slab.chunks, chunks);
    slab_close(&slab);
}

static void test_objects_may_be_larger_than_a_chunk(void **state)
{
    uint8_t *one, *other;

    (void)state;
    slab_init(&slab, 3 << 20);
    one = slab_take(&slab);
    other = slab_take(&slab);
    memset(one, 1, 3 << 20);
    assert_int_equal(other[0], 0);
    slab_give(&slab, one);
    slab_give(&slab, other);
    slab_close(&slab);
}

static void close_it(void *argument)
{
    slab_close(argument);
}

static void test_none_is_left_when_it_is_closed(void **state)
{
    void *object;

    (void)state;
    slab_init(&slab, SIZE);
    object = slab_take(&slab);
    assert_true(aborts(close_it, &slab));
    slab_give(&slab, object);
    slab_close(&slab);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_object_is_one_of_its_own_and_all_zero),
        cmocka_unit_test(test_what_was_given_back_is_used_again),
        cmocka_unit_test(test_objects_may_be_larger_than_a_chunk),
        cmocka_unit_test(test_none_is_left_when_it_is_closed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
