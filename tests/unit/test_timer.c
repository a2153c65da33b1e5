#include "unit.h"

#include "base/owner.h"
#include "base/random.h"
#include "loop/timer.h"

enum { TIMERS = 200, PLACES = 64 };

struct alarm {
    struct timer timer;
    uint64_t at; /* the model's; UINT64_MAX: it is not set */
    unsigned expired;
    struct timers *timers;
    struct alarm *other;
    uint64_t again; /* when it sets itself, or the other one */
};

static uint64_t last_at; /* of those that expire: in order */

static void init(struct alarm *alarms, size_t count, struct timers *timers)
{
    for (size_t i = 0; i < count; i++)
        alarms[i] = (struct alarm){
            .timer.index = TIMER_OFF, .at = UINT64_MAX, .timers = timers, .other = &alarms[0]};
    for (size_t i = 0; i < count; i += count / 2) /* some at a time */
        assert_true(timers_reserve(timers, i + count / 2 > count ? count - i : count / 2));
}

static void close_all(struct timers *timers, size_t count)
{
    timers_release(timers, count);
    timers_free(timers);
    assert_null(timers->heap);
}

static void model_expired(struct timer *timer)
{
    struct alarm *alarm = OWNER(timer, struct alarm, timer);

    assert_false(timer_is_set(timer));
    assert_true(alarm->at >= last_at);
    last_at = alarm->at;
    alarm->at = UINT64_MAX;
}

static uint64_t earliest(const struct alarm *alarms)
{
    uint64_t first = UINT64_MAX;

    for (size_t i = 0; i < TIMERS; i++)
        if (alarms[i].at < first)
            first = alarms[i].at;
    return first;
}

static void test_random_operations_agree_with_a_model(void **state)
{
    static struct alarm alarms[TIMERS];
    struct timers timers = {0};
    uint64_t random = 1, now = 0;

    (void)state;
    init(alarms, TIMERS, &timers);
    for (int step = 0; step < 30000; step++) {
        struct alarm *alarm = &alarms[random_below(&random, TIMERS)];
        uint32_t what = random_below(&random, 10);

        if (what < 6) { /* also where it is set already, and to what is over */
            alarm->at = now + random_below(&random, 1000) - (now > 50 ? 50 : 0);
            timer_set(&timers, &alarm->timer, alarm->at, model_expired);
        } else if (what < 9) {
            alarm->at = UINT64_MAX;
            timer_cancel(&timers, &alarm->timer);
        } else {
            now += random_below(&random, 30);
            last_at = 0;
            timers_run(&timers, now);
            assert_true(earliest(alarms) > now);
        }
        assert_int_equal(timer_is_set(&alarm->timer), alarm->at != UINT64_MAX);
        assert_int_equal(timers_next(&timers), earliest(alarms));
    }
    for (size_t i = 0; i < TIMERS; i++)
        timer_cancel(&timers, &alarms[i].timer);
    close_all(&timers, TIMERS);
}

static void cancel_other(struct timer *timer)
{
    struct alarm *alarm = OWNER(timer, struct alarm, timer);

    alarm->expired++;
    timer_cancel(alarm->timers, &alarm->other->timer);
}

static void test_one_that_another_cancels_does_not_expire(void **state)
{
    struct alarm alarms[3];
    struct timers timers = {0};

    (void)state;
    init(alarms, COUNT(alarms), &timers);
    alarms[0].other = &alarms[1];
    alarms[2].other = &alarms[2]; /* which is not set any more */
    for (size_t i = 0; i < COUNT(alarms); i++)
        timer_set(&timers, &alarms[i].timer, i, cancel_other);
    timers_run(&timers, 10);
    assert_int_equal(alarms[0].expired, 1);
    assert_int_equal(alarms[1].expired, 0);
    assert_int_equal(alarms[2].expired, 1);
    close_all(&timers, COUNT(alarms));
}

static void set_other(struct timer *timer)
{
    struct alarm *alarm = OWNER(timer, struct alarm, timer);

    assert_true(alarm->expired++ < 10); /* or else it spins */
    timer_set(alarm->timers, &alarm->other->timer, alarm->again, set_other);
}

static void test_one_that_sets_itself_to_what_is_over_waits_for_the_next_run(void **state)
{
    struct alarm alarms[2];
    struct timers timers = {0};

    (void)state;
    init(alarms, COUNT(alarms), &timers);
    alarms[1].other = &alarms[1];
    timer_set(&timers, &alarms[0].timer, 5, set_other);
    timer_set(&timers, &alarms[1].timer, 6, cancel_other);
    for (unsigned run = 1; run <= 3; run++) {
        timers_run(&timers, 10 * run);
        assert_int_equal(alarms[0].expired, run);
        assert_int_equal(alarms[1].expired, 1); /* its turn came all the same */
        assert_true(timers_next(&timers) < 10 * (run + 1));
    }
    timer_cancel(&timers, &alarms[0].timer);
    close_all(&timers, COUNT(alarms));
}

static void test_one_that_another_sets_for_later_expires_then(void **state)
{
    struct alarm alarms[2];
    struct timers timers = {0};

    (void)state;
    init(alarms, COUNT(alarms), &timers);
    alarms[1].again = 20;
    timer_set(&timers, &alarms[1].timer, 5, set_other);
    timers_run(&timers, 19);
    assert_int_equal(alarms[0].expired, 0);
    assert_int_equal(timers_next(&timers), 20);
    alarms[0].again = 100;
    timers_run(&timers, 20);
    assert_int_equal(alarms[0].expired, 1);
    assert_int_equal(timers_next(&timers), 100);
    timer_cancel(&timers, &alarms[0].timer);
    assert_int_equal(timers_next(&timers), UINT64_MAX);
    close_all(&timers, COUNT(alarms));
}

static void test_a_place_that_was_promised_needs_no_memory(void **state)
{
    static struct alarm alarms[10 * PLACES];
    struct timers timers = {0};

    (void)state;
    failing_set(1);
    assert_false(timers_reserve(&timers, 1));
    assert_true(failing_take());
    init(alarms, COUNT(alarms), &timers);
    failing_set(1);
    for (size_t i = 0; i < COUNT(alarms); i++)
        timer_set(&timers, &alarms[i].timer, COUNT(alarms) - i, model_expired);
    assert_false(failing_take());
    failing_set(1);
    assert_false(timers_reserve(&timers, 1000000));
    assert_true(failing_take());
    for (size_t i = 0; i < COUNT(alarms); i++) /* all are where they were */
        alarms[i].at = COUNT(alarms) - i;
    last_at = 0;
    timers_run(&timers, COUNT(alarms));
    assert_int_equal(last_at, COUNT(alarms));
    close_all(&timers, COUNT(alarms));
}

static void set_without_a_place(void *timers)
{
    struct timer timer = {.index = TIMER_OFF};

    timer_set(timers, &timer, 1, model_expired);
}

static void free_with_a_place(void *timers)
{
    timers_free(timers);
}

static void release_what_is_used(void *timers)
{
    struct timer timer = {.index = TIMER_OFF};

    timer_set(timers, &timer, 1, model_expired);
    timers_release(timers, 1);
}

static void test_places_are_accounted_for(void **state)
{
    struct timers timers = {0};

    (void)state;
    assert_true(aborts(set_without_a_place, &timers));
    assert_true(timers_reserve(&timers, 1));
    assert_true(aborts(free_with_a_place, &timers));
    assert_true(aborts(release_what_is_used, &timers));
    assert_false(aborts(set_without_a_place, &timers));
    close_all(&timers, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_operations_agree_with_a_model),
        cmocka_unit_test(test_one_that_another_cancels_does_not_expire),
        cmocka_unit_test(test_one_that_sets_itself_to_what_is_over_waits_for_the_next_run),
        cmocka_unit_test(test_one_that_another_sets_for_later_expires_then),
        cmocka_unit_test(test_a_place_that_was_promised_needs_no_memory),
        cmocka_unit_test(test_places_are_accounted_for),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
