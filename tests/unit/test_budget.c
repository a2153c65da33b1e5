#include "unit.h"

#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include "net/budget.h"
#include "net/foreign.h"

enum { MOST = 320, KEPT = 10 /* a thirty-second */, THREADS = 4, SOMEBODY = 4711, ROUNDS = 20000 };

static struct budget budget;
static struct foreign *foreign;
static struct mosnhook_page page;

static int set_up(void **state)
{
    (void)state;
    foreign = foreign_create();
    assert_non_null(foreign);
    memset(&page, 0, sizeof page);
    budget = (struct budget){
        .most = MOST, .foreign = foreign, .page = &page, .event = eventfd(0, EFD_NONBLOCK)};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    assert_int_equal(budget_used(&budget), 0);
    close(budget.event);
    foreign_release(foreign);
    return 0;
}

static bool was_told(void)
{
    eventfd_t value;

    return eventfd_read(budget.event, &value) == 0;
}

static void test_no_more_is_given_than_there_is(void **state)
{
    (void)state;
    assert_true(budget_reserve(&budget, MOST - 3));
    assert_false(budget_reserve(&budget, 4));
    assert_true(budget_reserve(&budget, 3));
    assert_false(budget_reserve(&budget, 1));
    assert_int_equal(budget_used(&budget), MOST); /* what was refused is not counted */
    budget_release(&budget, MOST);
}

static void test_an_eighth_is_not_for_what_can_be_done_without(void **state)
{
    (void)state;
    assert_true(budget_reserve_spare(&budget, MOST / 8 * 7));
    assert_false(budget_reserve_spare(&budget, 1));
    assert_true(budget_reserve(&budget, MOST / 8));
    budget_release(&budget, MOST);
}

static void look(bool full, bool told)
{
    assert_int_equal(budget_look(&budget, 1000), full);
    assert_int_equal(page.full, full);
    assert_int_equal(was_told(), told);
}

static void test_full_is_said_once_and_taken_back_when_there_is_twice_as_much(void **state)
{
    (void)state;
    assert_true(budget_reserve(&budget, MOST - KEPT));
    look(false, false);
    assert_true(budget_reserve(&budget, 1));
    look(true, true);
    look(true, false);
    budget_release(&budget, KEPT);
    look(true, false); /* or else it would change with each connection */
    budget_release(&budget, 1);
    look(false, true);
    look(false, false);
    budget_release(&budget, MOST - 2 * KEPT);
}

static void test_it_is_full_for_a_while_when_the_host_has_no_more(void **state)
{
    (void)state;
    budget_ran_out(&budget, 1000);
    assert_true(budget_look(&budget, 1000));
    assert_true(budget_look(&budget, 1000 + REFUSE_AFTER_MS - 1));
    assert_int_equal(page.full, 1);
    assert_false(budget_look(&budget, 1000 + REFUSE_AFTER_MS));
    assert_int_equal(page.full, 0);
}

static void test_it_can_do_without_a_page(void **state)
{
    (void)state;
    budget.page = NULL;
    budget_ran_out(&budget, 1000);
    assert_true(budget_look(&budget, 1000));
    assert_true(was_told());
}

static void test_what_is_not_closed_yet_counts(void **state)
{
    int peer, fd = lingering_socket(&peer);

    (void)state;
    assert_true(budget_reserve(&budget, MOST - 1));
    foreign_close(foreign, SOMEBODY, &fd);
    assert_int_equal(budget_used(&budget), MOST);
    assert_false(budget_reserve(&budget, 1));
    close(peer);
    while (foreign_pending(foreign))
        usleep(1000);
    assert_true(budget_reserve(&budget, 1));
    budget_release(&budget, MOST);
}

static void *reserve_and_release(void *unused)
{
    (void)unused;
    for (int i = 0; i < ROUNDS; i++)
        if (budget_reserve(&budget, MOST / 3)) {
            budget_look(&budget, 1000);
            budget_release(&budget, MOST / 3);
        }
    return NULL;
}

static void test_workers_share_it(void **state)
{
    pthread_t threads[THREADS];

    (void)state;
    for (size_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, reserve_and_release, NULL), 0);
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(budget_used(&budget), 0);
    budget_look(&budget, 1000);
    assert_int_equal(page.full, budget_look(&budget, 1000));
}

static void test_it_measures_what_the_process_may_have(void **state)
{
    struct rlimit limit, small = {.rlim_cur = 64, .rlim_max = 0};

    (void)state;
    getrlimit(RLIMIT_NOFILE, &limit);
    small.rlim_max = limit.rlim_max;
    assert_return_code(setrlimit(RLIMIT_NOFILE, &small), 0);
    assert_true(budget_measure(&budget, 10));
    assert_int_equal(budget.limit, 64);
    assert_in_range(budget.most, 20, 64 - 10 - 3);
    assert_false(budget_measure(&budget, 60));
    setrlimit(RLIMIT_NOFILE, &limit);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_no_more_is_given_than_there_is),
        TEST(test_an_eighth_is_not_for_what_can_be_done_without),
        TEST(test_full_is_said_once_and_taken_back_when_there_is_twice_as_much),
        TEST(test_it_is_full_for_a_while_when_the_host_has_no_more),
        TEST(test_it_can_do_without_a_page),
        TEST(test_what_is_not_closed_yet_counts),
        TEST(test_workers_share_it),
        TEST(test_it_measures_what_the_process_may_have),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
