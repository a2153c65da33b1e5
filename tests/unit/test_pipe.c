#include "unit.h"

#include <fcntl.h>
#include <unistd.h>

#include "net/budget.h"
#include "net/foreign.h"
#include "net/pipe.h"

enum { POOL = 32, FDS = 2 };

static struct worker worker;
static struct pipes pipes;
static struct budget budget;
static int before;

static int set_up(void **state)
{
    (void)state;
    budget = (struct budget){.most = 1000, .foreign = foreign_create()};
    worker = (struct worker){.budget = &budget, .pipes = &pipes};
    before = open_descriptors();
    return 0;
}

/* Nothing is left, whatever the test did. */
static int tear_down(void **state)
{
    (void)state;
    pipes_close(&worker);
    assert_int_equal(counter_read(&worker.counters.buffers), 0);
    assert_int_equal(budget_used(&budget), 0);
    assert_int_equal(open_descriptors(), before);
    foreign_release((struct foreign *)budget.foreign);
    return 0;
}

static void test_an_empty_one_is_kept_and_used_again(void **state)
{
    struct pipe *pipe = pipe_acquire(&worker);

    (void)state;
    assert_non_null(pipe);
    assert_int_equal(counter_read(&worker.counters.buffers), 1);
    assert_int_equal(budget_used(&budget), FDS);
    assert_true(fcntl(pipe->read_end, F_GETFL) & O_NONBLOCK);
    assert_true(fcntl(pipe->write_end, F_GETFD) & FD_CLOEXEC);
    pipe_give_back(&worker, pipe);
    assert_int_equal(counter_read(&worker.counters.buffers), 0);
    assert_int_equal(budget_used(&budget), FDS);
    for (int i = 0; i < 2 * POOL; i++) {
        assert_ptr_equal(pipe_acquire(&worker), pipe);
        assert_int_equal(budget_used(&budget), FDS);
        pipe_give_back(&worker, pipe);
    }
    assert_int_equal(budget_used(&budget), FDS);
}

static void test_one_that_holds_bytes_is_never_used_again(void **state)
{
    struct pipe *pipe = pipe_acquire(&worker);

    (void)state;
    assert_int_equal(write(pipe->write_end, "secret", 6), 6);
    pipe->held = 6;
    pipe_give_back(&worker, pipe);
    assert_int_equal(budget_used(&budget), 0);
    assert_int_equal(open_descriptors(), before);
}

static void test_no_more_are_kept_than_the_pool_has_room_for(void **state)
{
    struct pipe *all[POOL + 8];

    (void)state;
    for (size_t i = 0; i < COUNT(all); i++) {
        all[i] = pipe_acquire(&worker);
        assert_non_null(all[i]);
    }
    for (size_t i = 0; i < COUNT(all); i++)
        pipe_give_back(&worker, all[i]);
    assert_int_equal(budget_used(&budget), POOL * FDS);
    assert_int_equal(open_descriptors(), before + POOL * FDS);
}

static void test_the_last_descriptors_are_for_connections(void **state)
{
    struct pipe *pipe;

    (void)state;
    budget.most = 16;
    assert_true(budget_reserve(&budget, 13));
    assert_null(pipe_acquire(&worker));
    assert_int_equal(budget_used(&budget), 13);
    budget_release(&budget, 1);
    pipe = pipe_acquire(&worker);
    assert_non_null(pipe);
    pipe_give_back(&worker, pipe);
    budget_release(&budget, 12);
}

static void test_without_memory_nothing_is_left(void **state)
{
    (void)state;
    failing_set(1);
    assert_null(pipe_acquire(&worker));
    assert_true(failing_take());
    assert_int_equal(budget_used(&budget), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_an_empty_one_is_kept_and_used_again),
        TEST(test_one_that_holds_bytes_is_never_used_again),
        TEST(test_no_more_are_kept_than_the_pool_has_room_for),
        TEST(test_the_last_descriptors_are_for_connections),
        TEST(test_without_memory_nothing_is_left),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
