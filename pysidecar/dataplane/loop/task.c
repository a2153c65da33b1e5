#include "loop/task.h"

#include <assert.h>

void tasks_init(struct tasks *tasks)
{
    tasks->first = NULL;
    tasks->last = &tasks->first;
    tasks->count = 0;
    tasks->end.previous = NULL;
}

void task_schedule(struct tasks *tasks, struct task *task)
{
    assert(task->run);
    if (task_is_scheduled(task))
        return;
    task->next = NULL;
    task->previous = tasks->last;
    *tasks->last = task;
    tasks->last = &task->next;
    tasks->count++;
}

void task_cancel(struct tasks *tasks, struct task *task)
{
    if (!task_is_scheduled(task))
        return;
    *task->previous = task->next;
    if (task->next)
        task->next->previous = task->previous;
    else
        tasks->last = task->previous;
    task->previous = NULL;
    tasks->count--;
}

static void ends(struct task *task)
{
    (void)task; /* it never runs */
}

void tasks_run(struct tasks *tasks)
{
    struct task *end = &tasks->end;

    end->run = ends;
    task_schedule(tasks, end);
    while (tasks->first != end) {
        struct task *task = tasks->first;

        task_cancel(tasks, task);
        task->run(task);
    }
    task_cancel(tasks, end);
}
