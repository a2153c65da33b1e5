#include "unit.h"

#include <string.h>

#include "upstream/maglev.h"

enum { MOST = 1000, HASHES = 20000 };

static struct dp_endpoint endpoints[MOST];

static int set_up(void **state)
{
    (void)state;
    for (uint16_t i = 0; i < MOST; i++)
        endpoints[i] =
            (struct dp_endpoint){.address = on_loopback((uint16_t)(1000 + i)), .weight = 1};
    return 0;
}

static uint64_t hash_at(uint32_t i)
{
    return (uint64_t)i * UINT64_C(0x9e3779b97f4a7c15);
}

static void count_slots(const struct maglev *maglev, uint32_t *counts)
{
    memset(counts, 0, MOST * sizeof *counts);
    for (uint32_t i = 0; i < maglev->size; i++)
        counts[maglev->slots[i]]++;
}

static void test_all_have_the_same_number_of_slots(void **state)
{
    static const uint32_t sizes[] = {1, 2, 3, 20, 650, 651, MOST};
    static uint32_t counts[MOST];

    (void)state;
    for (size_t k = 0; k < COUNT(sizes); k++) {
        struct maglev *maglev = maglev_create(endpoints, sizes[k]);
        uint32_t even = maglev->size / sizes[k];

        count_slots(maglev, counts);
        for (uint32_t i = 0; i < sizes[k]; i++)
            assert_in_range(counts[i], even, even + 1);
        maglev_free(maglev);
    }
}

static void test_slots_go_by_weight(void **state)
{
    static uint32_t counts[MOST];
    struct maglev *maglev;

    (void)state;
    endpoints[0].weight = 10;
    endpoints[1].weight = 30;
    endpoints[2].weight = 60;
    maglev = maglev_create(endpoints, 3);
    count_slots(maglev, counts);
    assert_in_range(counts[0], maglev->size / 10 - 5, maglev->size / 10 + 5);
    assert_in_range(counts[1], 3 * maglev->size / 10 - 5, 3 * maglev->size / 10 + 5);
    maglev_free(maglev);
    endpoints[0].weight = UINT32_MAX; /* and the others still have some, soon */
    maglev = maglev_create(endpoints, MOST);
    count_slots(maglev, counts);
    assert_in_range(counts[0], maglev->size - MOST, maglev->size);
    maglev_free(maglev);
}

/* Where one of twenty leaves, its twentieth has to move. Of the others the paper moves a few in a
 * hundred, at a table of this size. */
static void test_few_move_when_one_leaves(void **state)
{
    struct maglev *before, *after;
    uint32_t moved = 0, had_to = 0;

    (void)state;
    before = maglev_create(endpoints, 20);
    after = maglev_create(endpoints, 19);
    for (uint32_t i = 0; i < HASHES; i++) {
        uint32_t old = maglev_at(before, hash_at(i), 0);

        assert_int_equal(maglev_at(before, hash_at(i), 0), old);
        had_to += old == 19;
        moved += old != 19 && maglev_at(after, hash_at(i), 0) != old;
    }
    assert_in_range(had_to, HASHES / 20 - HASHES / 100, HASHES / 20 + HASHES / 100);
    assert_in_range(moved, 0, HASHES / 25);
    maglev_free(before);
    maglev_free(after);
}

/* Those of one that does not take them are shared by all others, and always alike. */
static void test_another_attempt_is_another_one(void **state)
{
    struct maglev *maglev = maglev_create(endpoints, 20);
    uint32_t counts[20] = {0}, same = 0;

    (void)state;
    for (uint32_t i = 0; i < HASHES; i++) {
        uint32_t first = maglev_at(maglev, hash_at(i), 0),
                 second = maglev_at(maglev, hash_at(i), 1);

        assert_int_equal(maglev_at(maglev, hash_at(i), 1), second);
        same += first == second;
        if (first == 0)
            counts[second]++;
    }
    assert_in_range(same, HASHES / 40, HASHES / 10);
    for (uint32_t i = 0; i < 20; i++)
        assert_in_range(counts[i], 15, 110); /* of fifty */
    maglev_free(maglev);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_all_have_the_same_number_of_slots, set_up),
        cmocka_unit_test_setup(test_slots_go_by_weight, set_up),
        cmocka_unit_test_setup(test_few_move_when_one_leaves, set_up),
        cmocka_unit_test_setup(test_another_attempt_is_another_one, set_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
