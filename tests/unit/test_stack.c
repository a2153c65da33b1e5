#include "unit.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/stack.h"

enum { PUSHERS = 4, EACH = 20000, CHAIN = 3 };

struct node {
    struct node *next;
    unsigned pusher, number;
};

static _Atomic(struct node *) stack;
static atomic_uint empty; /* pushes that found nothing on the stack */

/* Chains of CHAIN nodes, whose first is on top, hence the newest. */
static void *push_all(void *argument)
{
    struct node *nodes = argument, *was;

    for (unsigned i = 0; i < EACH; i += CHAIN) {
        unsigned count = EACH - i < CHAIN ? EACH - i : CHAIN;

        for (unsigned k = 0; k + 1 < count; k++)
            nodes[i + k + 1].next = &nodes[i + k];
        STACK_PUSH_CHAIN(&stack, &nodes[i + count - 1], &nodes[i], next, &was);
        if (!was)
            atomic_fetch_add(&empty, 1);
    }
    return NULL;
}

/* Of each pusher, what was taken before is older than what is taken now. */
static unsigned take(unsigned next[PUSHERS])
{
    unsigned count = 0, lowest[PUSHERS], highest[PUSHERS] = {0}, of[PUSHERS] = {0};

    for (struct node *node = STACK_TAKE(&stack); node; node = node->next) {
        unsigned pusher = node->pusher;

        if (of[pusher]++ == 0)
            highest[pusher] = node->number;
        else
            assert_int_equal(node->number, lowest[pusher] - 1);
        lowest[pusher] = node->number;
        count++;
    }
    for (unsigned i = 0; i < PUSHERS; i++) {
        if (of[i] == 0)
            continue;
        assert_int_equal(lowest[i], next[i]);
        next[i] = highest[i] + 1;
    }
    return count;
}

static void test_one_takes_what_several_push_in_order_and_nothing_is_lost(void **state)
{
    struct node *nodes = calloc((size_t)PUSHERS * EACH, sizeof *nodes);
    pthread_t threads[PUSHERS];
    unsigned next[PUSHERS] = {0}, taken = 0, takes = 0, now;

    (void)state;
    for (unsigned i = 0; i < PUSHERS * EACH; i++)
        nodes[i] = (struct node){.pusher = i / EACH, .number = i % EACH};
    for (unsigned i = 0; i < PUSHERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, push_all, &nodes[i * EACH]), 0);
    while (taken < PUSHERS * EACH) {
        now = take(next);
        taken += now;
        takes += now > 0;
    }
    for (unsigned i = 0; i < PUSHERS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(take(next), 0);
    /* Whoever found it empty has to wake the taker: once for each time that there was something. */
    assert_int_equal(atomic_load(&empty), takes);
    free(nodes);
}

static void test_it_is_told_what_was_on_top(void **state)
{
    struct node one = {.number = 1}, two = {.number = 2}, *was = &two;

    (void)state;
    STACK_PUSH_CHAIN(&stack, &one, &one, next, &was);
    assert_null(was);
    STACK_PUSH_CHAIN(&stack, &two, &two, next, &was);
    assert_ptr_equal(was, &one);
    assert_ptr_equal(STACK_TAKE(&stack), &two);
    assert_ptr_equal(two.next, &one);
    assert_null(one.next);
    assert_null(STACK_TAKE(&stack));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_it_is_told_what_was_on_top),
        cmocka_unit_test(test_one_takes_what_several_push_in_order_and_nothing_is_lost),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
