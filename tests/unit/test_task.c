#include "unit.h"

#include "base/owner.h"
#include "loop/task.h"

enum { MOST = 16 };

struct step {
    struct task task;
    struct step *schedules, *cancels;
};

static struct tasks tasks;
static const struct step *ran[MOST];
static size_t ran_count;

static void run(struct task *task)
{
    struct step *step = OWNER(task, struct step, task);

    assert_false(task_is_scheduled(task));
    assert_in_range(ran_count, 0, MOST - 1);
    ran[ran_count++] = step;
    if (step->schedules)
        task_schedule(&tasks, &step->schedules->task);
    if (step->cancels)
        task_cancel(&tasks, &step->cancels->task);
}

static void begin(struct step *steps, size_t count)
{
    tasks_init(&tasks);
    for (size_t i = 0; i < count; i++) {
        steps[i] = (struct step){.task.run = run};
        assert_false(task_is_scheduled(&steps[i].task));
        task_schedule(&tasks, &steps[i].task);
        assert_true(task_is_scheduled(&steps[i].task));
    }
}

static void assert_one_turn(const struct step *const *expected, size_t count)
{
    ran_count = 0;
    tasks_run(&tasks);
    assert_int_equal(ran_count, count);
    for (size_t i = 0; i < count; i++)
        assert_ptr_equal(ran[i], expected[i]);
}

#define ASSERT_ONE_TURN(...)                              \
    assert_one_turn((const struct step *[]){__VA_ARGS__}, \
                    COUNT(((const struct step *[]){__VA_ARGS__})))

static void assert_idle_turn(void)
{
    assert_one_turn(NULL, 0);
    assert_int_equal(tasks.count, 0);
}

static void test_they_run_once_in_the_order_in_which_they_were_scheduled(void **state)
{
    struct step steps[3];

    (void)state;
    begin(steps, COUNT(steps));
    task_schedule(&tasks, &steps[0].task); /* it stays where it is */
    assert_int_equal(tasks.count, 3);
    ASSERT_ONE_TURN(&steps[0], &steps[1], &steps[2]);
    assert_idle_turn();
}

static void test_cancelled_ones_do_not_run_wherever_they_stand(void **state)
{
    struct step steps[4];

    (void)state;
    for (size_t i = 0; i < COUNT(steps); i++) {
        begin(steps, COUNT(steps));
        task_cancel(&tasks, &steps[i].task);
        task_cancel(&tasks, &steps[i].task); /* it stays that */
        assert_int_equal(tasks.count, 3);
        task_schedule(&tasks, &steps[i].task); /* behind all others */
        ASSERT_ONE_TURN(&steps[i == 0], &steps[i <= 1 ? 2 : 1], &steps[i == 3 ? 2 : 3], &steps[i]);
        assert_idle_turn();
    }
}

static void test_what_one_schedules_waits_for_the_next_turn(void **state)
{
    struct step steps[3];

    (void)state;
    begin(steps, COUNT(steps));
    steps[0].schedules = &steps[0];
    steps[1].schedules = &steps[2]; /* it is already */
    steps[2].schedules = &steps[1];
    ASSERT_ONE_TURN(&steps[0], &steps[1], &steps[2]);
    steps[1].schedules = steps[2].schedules = NULL;
    ASSERT_ONE_TURN(&steps[0], &steps[1]);
    ASSERT_ONE_TURN(&steps[0]); /* for ever, and others have their turns in between */
    task_schedule(&tasks, &steps[2].task);
    ASSERT_ONE_TURN(&steps[0], &steps[2]);
    task_cancel(&tasks, &steps[0].task);
    assert_idle_turn();
}

static void test_one_may_cancel_those_behind_it_and_itself(void **state)
{
    struct step steps[4];

    (void)state;
    begin(steps, COUNT(steps));
    steps[0].cancels = &steps[1];
    steps[2].schedules = steps[2].cancels = &steps[2];
    steps[3].cancels = &steps[0]; /* which has run */
    ASSERT_ONE_TURN(&steps[0], &steps[2], &steps[3]);
    assert_idle_turn();
}

/* What is scheduled in a turn does not take the place of what is cancelled in it. */
static void test_one_that_cancels_another_and_schedules_a_third(void **state)
{
    struct step steps[3];

    (void)state;
    begin(steps, COUNT(steps));
    task_cancel(&tasks, &steps[2].task);
    steps[0].cancels = &steps[1];
    steps[0].schedules = &steps[2];
    ASSERT_ONE_TURN(&steps[0]);
    ASSERT_ONE_TURN(&steps[2]);
    assert_idle_turn();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_they_run_once_in_the_order_in_which_they_were_scheduled),
        cmocka_unit_test(test_cancelled_ones_do_not_run_wherever_they_stand),
        cmocka_unit_test(test_what_one_schedules_waits_for_the_next_turn),
        cmocka_unit_test(test_one_may_cancel_those_behind_it_and_itself),
        cmocka_unit_test(test_one_that_cancels_another_and_schedules_a_third),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
