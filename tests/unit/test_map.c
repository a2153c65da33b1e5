#include "unit.h"

#include <stdlib.h>

#include "base/map.h"
#include "base/owner.h"
#include "base/random.h"

enum { ITEMS = 3000, HASHES = 700 };

struct item {
    struct map_entry entry;
    uint64_t hash;
    unsigned added; /* when; 0: it is not in the map */
};

static unsigned count_of(const struct map *map, uint64_t hash)
{
    unsigned count = 0, before = UINT32_MAX;

    for (struct map_entry *entry = map_first(map, hash); entry; entry = map_next(entry)) {
        const struct item *item = OWNER(entry, struct item, entry);

        assert_int_equal(item->hash, hash);
        assert_in_range(item->added, 1, before - 1); /* the newest first */
        before = item->added;
        count++;
    }
    return count;
}

static void test_an_empty_map_finds_nothing(void **state)
{
    struct map map = {.count = 0};

    (void)state;
    assert_null(map_first(&map, 0));
    assert_null(map_first(&map, UINT64_MAX));
    map_close(&map);
}

/* Hashes of which several share a bucket, and several entries a hash. */
static uint64_t hash_of(uint64_t number)
{
    return number % 3 ? number << 20 : number;
}

static void test_random_operations_agree_with_a_model(void **state)
{
    static struct item items[ITEMS];
    static unsigned counts[HASHES];
    struct map map = {.count = 0};
    uint64_t random = 1;
    size_t in_map = 0;

    (void)state;
    for (unsigned step = 1; step < 60000; step++) {
        /* It grows in the first half, and shrinks in the second. */
        bool add = random_below(&random, 100) < (step < 30000 ? 60 : 30);
        struct item *item = &items[random_below(&random, ITEMS)];
        unsigned number;

        if (add && !item->added) {
            number = random_below(&random, HASHES);
            item->hash = hash_of(number);
            item->added = step;
            assert_true(map_add(&map, &item->entry, item->hash));
            counts[number]++;
            in_map++;
        } else if (!add && item->added) {
            number = (unsigned)(item->hash >= HASHES ? item->hash >> 20 : item->hash);
            map_remove(&map, &item->entry);
            item->added = 0;
            counts[number]--;
            in_map--;
        }
        number = random_below(&random, HASHES);
        assert_int_equal(count_of(&map, hash_of(number)), counts[number]);
        assert_int_equal(map.count, in_map);
    }
    for (size_t i = 0; i < ITEMS; i++)
        if (items[i].added)
            map_remove(&map, &items[i].entry);
    assert_true(map.bucket_count <= 16); /* it gave its memory back */
    map_close(&map);
}

static void test_what_is_looked_at_may_be_removed(void **state)
{
    struct item items[5] = {0};
    struct map map = {.count = 0};
    struct map_entry *entry, *next;

    (void)state;
    for (size_t i = 0; i < COUNT(items); i++)
        assert_true(map_add(&map, &items[i].entry, 7));
    for (entry = map_first(&map, 7); entry; entry = next) {
        next = map_next(entry);
        map_remove(&map, entry);
    }
    assert_null(map_first(&map, 7));
    map_close(&map);
}

static void test_without_memory_the_first_is_refused_and_a_full_map_goes_on(void **state)
{
    static struct item items[100];
    struct map map = {.count = 0};
    bool failed = false;

    (void)state;
    failing_set(1);
    assert_false(map_add(&map, &items[0].entry, 0));
    assert_true(failing_take());
    for (size_t i = 0; i < COUNT(items); i++) {
        failing_set(i > 0 && i < 50 ? 1 : 0);
        assert_true(map_add(&map, &items[i].entry, i));
        failed |= failing_take();
    }
    assert_true(failed);
    assert_true(map.bucket_count > 16); /* it grew as soon as it could */
    for (size_t i = 0; i < COUNT(items); i++)
        assert_ptr_equal(map_first(&map, i), &items[i].entry);
    for (size_t i = 0; i < COUNT(items); i++)
        map_remove(&map, &items[i].entry);
    map_close(&map);
}

static void close_map(void *map)
{
    map_close(map);
}

static void test_a_map_that_is_closed_must_be_empty(void **state)
{
    struct map map = {.count = 0};
    struct item item;

    (void)state;
    assert_true(map_add(&map, &item.entry, 1));
    assert_true(aborts(close_map, &map));
    map_remove(&map, &item.entry);
    map_close(&map);
    assert_null(map.buckets);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_empty_map_finds_nothing),
        cmocka_unit_test(test_random_operations_agree_with_a_model),
        cmocka_unit_test(test_what_is_looked_at_may_be_removed),
        cmocka_unit_test(test_without_memory_the_first_is_refused_and_a_full_map_goes_on),
        cmocka_unit_test(test_a_map_that_is_closed_must_be_empty),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
