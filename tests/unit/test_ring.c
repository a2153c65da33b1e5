#include "unit.h"

#include <pthread.h>
#include <string.h>

#include "base/ring.h"

enum { KEPT = 64, WRITTEN = 200000, AT_ONCE = 7 };

struct record {
    uint64_t number, twice, square;
};

static struct record numbered(uint64_t number)
{
    return (struct record){number, 2 * number, number * number};
}

static void write_up_to(struct ring *ring, uint64_t from, uint64_t to)
{
    for (uint64_t number = from; number < to; number++) {
        struct record record = numbered(number);

        ring_write(ring, &record);
    }
}

static void test_each_record_is_taken_once_and_in_order(void **state)
{
    struct ring ring;
    struct record records[AT_ONCE];
    uint64_t missed = 0, next = 0;

    (void)state;
    assert_int_equal(ring_create(&ring, sizeof(struct record), KEPT), 0);
    assert_int_equal(ring_take(&ring, records, AT_ONCE, &missed), 0);
    write_up_to(&ring, 0, KEPT - 1);
    while (next < KEPT - 1) {
        size_t count = ring_take(&ring, records, AT_ONCE, &missed);

        assert_in_range(count, 1, AT_ONCE);
        for (size_t i = 0; i < count; i++)
            assert_int_equal(records[i].number, next++);
    }
    assert_int_equal(ring_take(&ring, records, AT_ONCE, &missed), 0);
    assert_int_equal(missed, 0);
    assert_int_equal(ring_written(&ring), KEPT - 1);
    ring_destroy(&ring);
}

static void test_the_oldest_are_overwritten_and_counted(void **state)
{
    struct ring ring;
    struct record record;
    uint64_t missed = 0;

    (void)state;
    assert_int_equal(ring_create(&ring, sizeof record, KEPT - 1), 0); /* rounded up */
    write_up_to(&ring, 0, KEPT + 3);
    /* The very oldest is where the writer may be about to write. */
    assert_int_equal(ring_take(&ring, &record, 1, &missed), 1);
    assert_int_equal(record.number, 4);
    assert_int_equal(missed, 4);
    ring_skip(&ring);
    assert_int_equal(ring_take(&ring, &record, 1, &missed), 0);
    write_up_to(&ring, KEPT + 3, KEPT + 4);
    assert_int_equal(ring_take(&ring, &record, 1, &missed), 1);
    assert_int_equal(record.number, KEPT + 3);
    assert_int_equal(missed, 4);
    ring_destroy(&ring);
}

static void test_the_latest_can_be_looked_at_without_taking_them(void **state)
{
    struct ring ring;
    struct record records[KEPT];
    uint64_t missed = 0;

    (void)state;
    assert_int_equal(ring_create(&ring, sizeof *records, KEPT), 0);
    assert_int_equal(ring_latest(&ring, records, KEPT), 0);
    write_up_to(&ring, 0, 3);
    for (int again = 0; again < 2; again++) {
        assert_int_equal(ring_latest(&ring, records, KEPT), 3);
        assert_int_equal(records[0].number, 0);
        assert_int_equal(records[2].number, 2);
    }
    assert_int_equal(ring_latest(&ring, records, 2), 2);
    assert_int_equal(records[0].number, 1);
    assert_int_equal(ring_take(&ring, records, KEPT, &missed), 3);
    assert_int_equal(ring_latest(&ring, records, KEPT), 3);
    write_up_to(&ring, 3, 2 * KEPT);
    assert_int_equal(ring_latest(&ring, records, KEPT), KEPT - 1);
    assert_int_equal(records[KEPT - 2].number, 2 * KEPT - 1);
    ring_destroy(&ring);
}

static void *write_all(void *ring)
{
    write_up_to(ring, 0, WRITTEN);
    return NULL;
}

/* Whole records, in order, none twice; and what is missing is counted. */
static void test_a_reader_beside_the_writer_sees_nothing_torn(void **state)
{
    struct ring ring;
    struct record records[AT_ONCE];
    uint64_t missed = 0, seen = 0, next = 0;
    pthread_t writer;

    (void)state;
    assert_int_equal(ring_create(&ring, sizeof(struct record), KEPT), 0);
    assert_int_equal(pthread_create(&writer, NULL, write_all, &ring), 0);
    while (seen + missed < WRITTEN) {
        size_t count = ring_take(&ring, records, AT_ONCE, &missed);

        for (size_t i = 0; i < count; i++) {
            struct record whole = numbered(records[i].number);

            assert_memory_equal(&records[i], &whole, sizeof whole);
            assert_true(whole.number >= next);
            next = whole.number + 1;
        }
        seen += count;
    }
    pthread_join(writer, NULL);
    assert_int_equal(seen + missed, WRITTEN);
    assert_int_equal(next, WRITTEN);
    ring_destroy(&ring);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_record_is_taken_once_and_in_order),
        cmocka_unit_test(test_the_oldest_are_overwritten_and_counted),
        cmocka_unit_test(test_the_latest_can_be_looked_at_without_taking_them),
        cmocka_unit_test(test_a_reader_beside_the_writer_sees_nothing_torn),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
