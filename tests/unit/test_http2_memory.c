#include "unit.h"

#include <stdint.h>
#include <string.h>

#include "l7/http2_memory.h"

enum { MANY = 20000, SIZE = 200 };

static struct http2_memory memory;

static int tear_down(void **state)
{
    (void)state;
    http2_memory_close(&memory);
    return 0;
}

static void test_pieces_do_not_overlap(void **state)
{
    static const size_t sizes[] = {0, 1, 63, 64, 65, 1000, 1024, 1025, 100000};
    enum { COUNT = sizeof sizes / sizeof *sizes };
    uint8_t *pieces[COUNT];

    (void)state;
    for (int turn = 0; turn < 3; turn++) {
        for (size_t i = 0; i < COUNT; i++) {
            pieces[i] = http2_memory_take(sizes[i], &memory);
            assert_non_null(pieces[i]);
            assert_int_equal((uintptr_t)pieces[i] % _Alignof(max_align_t), 0);
            memset(pieces[i], (int)i, sizes[i]);
        }
        for (size_t i = 0; i < COUNT; i++) {
            for (size_t at = 0; at < sizes[i]; at++)
                assert_int_equal(pieces[i][at], i);
            http2_memory_give(pieces[i], &memory);
        }
    }
    http2_memory_give(NULL, &memory);
}

static void test_zeros_are_zeros_also_where_something_was(void **state)
{
    uint8_t *piece = http2_memory_take(SIZE, &memory);

    (void)state;
    memset(piece, 7, SIZE);
    http2_memory_give(piece, &memory);
    piece = http2_memory_take_zeros(SIZE / 4, 4, &memory);
    for (int i = 0; i < SIZE; i++)
        assert_int_equal(piece[i], 0);
    http2_memory_give(piece, &memory);
    assert_null(http2_memory_take_zeros(SIZE_MAX / 2, 4, &memory));
    assert_null(http2_memory_take(SIZE_MAX, &memory));
}

static void test_what_grows_keeps_what_it_has(void **state)
{
    char *piece = http2_memory_resize(NULL, 10, &memory);

    (void)state;
    memcpy(piece, "something", 10);
    for (size_t size = 20; size < 10000; size *= 2) {
        piece = http2_memory_resize(piece, size, &memory);
        assert_string_equal(piece, "something");
    }
    http2_memory_give(piece, &memory);
}

static void test_out_of_memory_leaves_what_is_there(void **state)
{
    char *piece = http2_memory_take(10, &memory);

    (void)state;
    memcpy(piece, "something", 10);
    failing_set(1);
    assert_null(http2_memory_resize(piece, 100000, &memory));
    assert_true(failing_take());
    assert_string_equal(piece, "something");
    http2_memory_give(piece, &memory);
}

static void test_only_so_much_is_kept(void **state)
{
    static void *pieces[MANY];

    (void)state;
    for (int i = 0; i < MANY; i++)
        pieces[i] = http2_memory_take(SIZE, &memory);
    for (int i = 0; i < MANY; i++)
        http2_memory_give(pieces[i], &memory);
    assert_true(memory.kept <= 512 * 1024);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_pieces_do_not_overlap, tear_down),
        cmocka_unit_test_teardown(test_zeros_are_zeros_also_where_something_was, tear_down),
        cmocka_unit_test_teardown(test_what_grows_keeps_what_it_has, tear_down),
        cmocka_unit_test_teardown(test_out_of_memory_leaves_what_is_there, tear_down),
        cmocka_unit_test_teardown(test_only_so_much_is_kept, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
