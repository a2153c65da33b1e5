#include "unit.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/owner.h"
#include "loop/loop.h"

struct source {
    struct watch watch;
    unsigned told;
    uint32_t events;
};

static struct loop loop;
static struct source sources[4];

static void count(struct watch *watch, uint32_t events)
{
    struct source *source = OWNER(watch, struct source, watch);

    source->told++;
    source->events = events;
}

static int open_source(struct source *source, unsigned value)
{
    int fd = eventfd(value, EFD_NONBLOCK | EFD_CLOEXEC);

    assert_int_not_equal(fd, -1);
    *source = (struct source){.watch = {.fd = fd, .ready = count}};
    assert_int_equal(loop_watch(&loop, &source->watch, EPOLLIN), 0);
    return fd;
}

static int set_up(void **state)
{
    (void)state;
    loop = (struct loop){.epoll = -1};
    return loop_open(&loop);
}

static int tear_down(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(sources); i++) {
        loop_close_watch(&loop, &sources[i].watch);
        sources[i].watch.fd = -1;
    }
    loop_close(&loop);
    return 0;
}

static void test_a_watch_is_told_what_came(void **state)
{
    (void)state;
    open_source(&sources[0], 1);
    open_source(&sources[1], 0);
    loop_turn(&loop);
    assert_int_equal(sources[0].told, 1);
    assert_int_equal(sources[0].events, EPOLLIN);
    assert_int_equal(sources[1].told, 0);
    loop_turn(&loop); /* it is still readable */
    assert_int_equal(sources[0].told, 2);
    loop_unwatch(&loop, &sources[0].watch);
    assert_int_equal(eventfd_write(sources[1].watch.fd, 1), 0);
    loop_turn(&loop);
    assert_int_equal(sources[0].told, 2);
    assert_int_equal(sources[1].told, 1);
    assert_int_equal(loop_watch(&loop, &sources[1].watch, EPOLLIN), -EEXIST);
}

/* The first one that is told closes all others, whichever comes first. */
static void close_others(struct watch *watch, uint32_t events)
{
    count(watch, events);
    for (size_t i = 0; i < COUNT(sources); i++) {
        if (&sources[i].watch == watch)
            continue;
        assert_true(watch_is_pending(&sources[i].watch));
        loop_close_watch(&loop, &sources[i].watch);
        assert_false(watch_is_pending(&sources[i].watch));
    }
    assert_false(watch_is_pending(watch));
}

static unsigned told(void)
{
    unsigned sum = 0;

    for (size_t i = 0; i < COUNT(sources); i++)
        sum += sources[i].told;
    return sum;
}

static void test_an_event_of_what_an_earlier_one_closed_is_not_told(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(sources); i++) {
        open_source(&sources[i], 1);
        sources[i].watch.ready = close_others;
    }
    loop_turn(&loop);
    assert_int_equal(told(), 1);
}

/* All others are closed, and watches with their numbers are there, for which nothing came. */
static void replace_others(struct watch *watch, uint32_t events)
{
    bool reused = false;
    int was[COUNT(sources)];

    count(watch, events);
    for (size_t i = 0; i < COUNT(sources); i++) {
        was[i] = sources[i].watch.fd;
        if (&sources[i].watch != watch)
            loop_close_watch(&loop, &sources[i].watch);
    }
    for (size_t i = 0; i < COUNT(sources); i++)
        if (&sources[i].watch != watch)
            reused |= open_source(&sources[i], 0) == was[i];
    assert_true(reused);
    watch->ready = count;
}

static void test_one_with_the_number_of_one_that_was_closed_is_not_told_its_event(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(sources); i++) {
        open_source(&sources[i], 1);
        sources[i].watch.ready = replace_others;
    }
    loop_turn(&loop);
    assert_int_equal(told(), 1);
    for (size_t i = 0; i < COUNT(sources); i++)
        if (!sources[i].told)
            assert_int_equal(eventfd_write(sources[i].watch.fd, 1), 0);
    loop_turn(&loop);
    for (size_t i = 0; i < COUNT(sources); i++)
        assert_int_not_equal(sources[i].told, 0);
}

static void unwatch_others(struct watch *watch, uint32_t events)
{
    count(watch, events);
    for (size_t i = 0; i < COUNT(sources); i++)
        if (&sources[i].watch != watch)
            loop_unwatch(&loop, &sources[i].watch);
}

static void test_an_event_of_what_an_earlier_one_unwatched_is_not_told(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(sources); i++) {
        open_source(&sources[i], 1);
        sources[i].watch.ready = unwatch_others;
    }
    loop_turn(&loop);
    assert_int_equal(told(), 1);
    for (size_t i = 0; i < COUNT(sources); i++) {
        uint64_t value;

        if (sources[i].told)
            continue;
        assert_int_equal(eventfd_read(sources[i].watch.fd, &value), 0); /* it is still open */
        assert_int_equal(loop_watch(&loop, &sources[i].watch, EPOLLIN), 0);
    }
}

static void other_way(struct watch *watch, uint32_t events)
{
    count(watch, events);
    OWNER(watch, struct source, watch)->told += 100;
}

static void change_others(struct watch *watch, uint32_t events)
{
    count(watch, events);
    for (size_t i = 0; i < COUNT(sources); i++)
        sources[i].watch.ready = other_way;
}

static void test_a_callback_that_is_changed_meanwhile_is_the_one_that_is_called(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(sources); i++) {
        open_source(&sources[i], 1);
        sources[i].watch.ready = change_others;
    }
    loop_turn(&loop);
    assert_int_equal(told(), 1 + (COUNT(sources) - 1) * 101);
}

/* ---- timers, tasks and each turn's ---- */

static uint64_t expired_ns;

static void expired(struct timer *timer)
{
    (void)timer;
    expired_ns = clock_ns(CLOCK_MONOTONIC);
}

/* It never wakes up for nothing: one turn is enough. */
static void assert_wakes_up_after(uint64_t ns)
{
    struct timer timer = {.index = TIMER_OFF};
    uint64_t at;

    assert_true(timers_reserve(&loop.timers, 1));
    loop_update_clock(&loop);
    at = loop.now_ns + ns;
    timer_set(&loop.timers, &timer, at, expired);
    expired_ns = 0;
    loop_turn(&loop);
    assert_true(expired_ns >= at);
    assert_false(timer_is_set(&timer));
    timers_release(&loop.timers, 1);
}

static void test_it_sleeps_until_a_deadline_and_not_less(void **state)
{
    static const uint64_t waits[] = {1,       1000,    50000,    999999,  1000000,
                                     1000001, 1500000, 20000000, 20300000};

    (void)state;
    for (size_t i = 0; i < COUNT(waits); i++)
        assert_wakes_up_after(waits[i]);
}

/* A deadline below 1 ms is not rounded up to one. The best of many: the machine may be busy. */
static void test_it_sleeps_less_than_a_millisecond(void **state)
{
    uint64_t best = UINT64_MAX;

    (void)state;
    for (int i = 0; i < 200; i++) {
        uint64_t began = clock_ns(CLOCK_MONOTONIC), took;

        assert_wakes_up_after(100000);
        took = expired_ns - began;
        best = took < best ? took : best;
    }
    assert_in_range(best, 100000, 900000);
}

static void test_a_timer_is_set_from_the_beginning_of_the_turn(void **state)
{
    struct timer timer = {.index = TIMER_OFF};

    (void)state;
    assert_true(timers_reserve(&loop.timers, 1));
    loop_set_timer(&loop, &timer, 5, expired);
    assert_int_equal(timers_next(&loop.timers), (loop.now_ns / NS_PER_MS + 5) * NS_PER_MS);
    timer_cancel(&loop.timers, &timer);
    timers_release(&loop.timers, 1);
}

static unsigned turns, order[2], runs;
static struct task task;

static void each_turn_first(struct task *each)
{
    (void)each;
    order[0] = ++turns;
}

static void each_turn_second(struct task *each)
{
    (void)each;
    order[1] = ++turns;
}

static void run_again(struct task *again)
{
    if (++runs < 3)
        task_schedule(&loop.tasks, again);
}

static void test_a_scheduled_task_keeps_a_turn_from_waiting(void **state)
{
    struct task first = {.run = each_turn_first}, second = {.run = each_turn_second};

    (void)state;
    turns = runs = 0;
    loop_add_each_turn(&loop, &first);
    loop_add_each_turn(&loop, &second);
    task.run = run_again;
    task_schedule(&loop.tasks, &task);
    for (unsigned turn = 1; turn <= 3; turn++) {
        loop_turn(&loop); /* nothing is watched, no timer is set */
        assert_int_equal(runs, turn);
        assert_int_equal(turns, 2 * turn);
        assert_int_equal(order[1], order[0] - 1); /* the last added first */
    }
    assert_int_equal(loop.tasks.count, 0);
    loop.each_turn = NULL;
}

static void close_loop(void *unused)
{
    (void)unused;
    loop_close(&loop);
}

static void test_a_loop_that_is_closed_has_nothing_left(void **state)
{
    struct timer timer = {.index = TIMER_OFF};

    (void)state;
    task.run = run_again;
    task_schedule(&loop.tasks, &task);
    assert_true(aborts(close_loop, NULL));
    task_cancel(&loop.tasks, &task);
    assert_true(timers_reserve(&loop.timers, 1));
    loop_set_timer(&loop, &timer, 5, expired);
    assert_true(aborts(close_loop, NULL));
    timer_cancel(&loop.timers, &timer);
    assert_true(aborts(close_loop, NULL));
    timers_release(&loop.timers, 1);
    assert_false(aborts(close_loop, NULL));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_a_watch_is_told_what_came),
        TEST(test_an_event_of_what_an_earlier_one_closed_is_not_told),
        TEST(test_one_with_the_number_of_one_that_was_closed_is_not_told_its_event),
        TEST(test_an_event_of_what_an_earlier_one_unwatched_is_not_told),
        TEST(test_a_callback_that_is_changed_meanwhile_is_the_one_that_is_called),
        TEST(test_it_sleeps_until_a_deadline_and_not_less),
        TEST(test_it_sleeps_less_than_a_millisecond),
        TEST(test_a_timer_is_set_from_the_beginning_of_the_turn),
        TEST(test_a_scheduled_task_keeps_a_turn_from_waiting),
        TEST(test_a_loop_that_is_closed_has_nothing_left),
    };

    for (size_t i = 0; i < COUNT(sources); i++)
        sources[i].watch.fd = -1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
