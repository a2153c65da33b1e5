#include "unit.h"

#include <string.h>

#include "l7/buffer.h"

static struct blocks blocks;
static struct buffer buffer;

static int set_up(void **state)
{
    (void)state;
    blocks = (struct blocks){.most = 1 << 20};
    buffer = (struct buffer){0};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    buffer_release(&blocks, &buffer);
    assert_int_equal(blocks.used, 0);
    blocks_close(&blocks);
    return 0;
}

static const uint8_t *held(void)
{
    return buffer.data + buffer.start;
}

static void test_empty_holds_no_memory(void **state)
{
    (void)state;
    assert_true(buffer_add(&blocks, &buffer, "abc", 3));
    assert_int_equal(blocks.used, SMALL_BLOCK_BYTES);
    buffer_drop(&blocks, &buffer, 1);
    assert_memory_equal(held(), "bc", 2);
    buffer_drop(&blocks, &buffer, 2);
    assert_null(buffer.data);
    assert_int_equal(blocks.used, 0);
}

static void test_bytes_stay_in_order_while_it_grows_and_shrinks(void **state)
{
    uint8_t next_in = 0, next_out = 0, piece[7919];
    size_t size = 0;

    (void)state;
    for (int i = 0; i < 500; i++) {
        size_t more = (size_t)(i * 7919 % 5000), less;

        for (size_t j = 0; j < more; j++)
            piece[j] = next_in++;
        assert_true(buffer_add(&blocks, &buffer, piece, more));
        size += more;
        less = i % 50 == 49 ? size : size / 4;
        for (size_t j = 0; j < less; j++)
            assert_int_equal(held()[j], next_out++);
        buffer_drop(&blocks, &buffer, less);
        size -= less;
        assert_int_equal(buffer_held(&buffer), size);
    }
}

static void test_what_waits_takes_the_smallest_block(void **state)
{
    static const uint8_t piece[BLOCK_BYTES + 1];
    struct buffer other = {0};

    (void)state;
    for (size_t size = SMALL_BLOCK_BYTES; size <= BLOCK_BYTES; size *= 2) {
        assert_true(buffer_add_tightly(&blocks, &other, piece, size));
        assert_int_equal(blocks.used, size);
        buffer_release(&blocks, &other);
        assert_true(buffer_add_tightly(&blocks, &other, piece, size + 1));
        assert_int_equal(blocks.used, 2 * size);
        buffer_release(&blocks, &other);
    }
    assert_true(buffer_add_tightly(&blocks, &buffer, "abc", 3));
    assert_true(buffer_add_tightly(&blocks, &buffer, piece, SMALL_BLOCK_BYTES));
    assert_int_equal(blocks.used, 2 * SMALL_BLOCK_BYTES);
    assert_memory_equal(held(), "abc\0", 4);
}

static void test_no_more_than_the_worker_may_have(void **state)
{
    struct buffer each[(1 << 20) / BLOCK_BYTES] = {0};
    size_t count = sizeof each / sizeof *each;

    (void)state;
    for (size_t i = 0; i < count; i++)
        assert_non_null(buffer_room(&blocks, &each[i], BLOCK_BYTES));
    assert_null(buffer_room(&blocks, &buffer, 1));
    for (size_t i = 0; i < count; i++)
        buffer_release(&blocks, &each[i]);
    assert_null(buffer_room(&blocks, &buffer, UINT32_MAX));
    assert_null(buffer_room(&blocks, &buffer, SIZE_MAX / 2));
}

static void test_a_large_one_leaves_most_of_the_rest(void **state)
{
    struct buffer other = {0};

    (void)state;
    assert_null(buffer_room(&blocks, &buffer, (1 << 17) + 1));
    assert_non_null(buffer_room(&blocks, &buffer, 1 << 17));
    assert_null(buffer_room(&blocks, &other, 1 << 17));
    assert_non_null(buffer_room(&blocks, &other, 1 << 16));
    buffer_release(&blocks, &other);
}

static void test_out_of_memory_leaves_what_it_holds(void **state)
{
    uint8_t piece[BLOCK_BYTES];

    (void)state;
    memset(piece, 7, sizeof piece);
    assert_true(buffer_add(&blocks, &buffer, "abc", 3));
    failing_set(1);
    assert_false(buffer_add(&blocks, &buffer, piece, sizeof piece));
    assert_true(failing_take());
    assert_int_equal(buffer_held(&buffer), 3);
    assert_memory_equal(held(), "abc", 3);
    assert_true(buffer_add(&blocks, &buffer, piece, sizeof piece));
    assert_memory_equal(held(), "abc\7", 4);
}

static void test_blocks_are_used_again(void **state)
{
    const uint8_t *first;

    (void)state;
    assert_true(buffer_add(&blocks, &buffer, "abc", 3));
    first = buffer.data;
    buffer_release(&blocks, &buffer);
    failing_set(1);
    assert_true(buffer_add(&blocks, &buffer, "abc", 3));
    assert_false(failing_take());
    assert_ptr_equal(buffer.data, first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_empty_holds_no_memory, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_bytes_stay_in_order_while_it_grows_and_shrinks, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_what_waits_takes_the_smallest_block, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_no_more_than_the_worker_may_have, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_large_one_leaves_most_of_the_rest, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_out_of_memory_leaves_what_it_holds, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_blocks_are_used_again, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
