/* Work that its owner goes on with in the next turn of the loop. */
#ifndef PYSIDECAR_LOOP_TASK_H
#define PYSIDECAR_LOOP_TASK_H

#include <stdbool.h>
#include <stddef.h>

/* Embedded in its owner. Zeroed but for `run`, it is not scheduled. */
struct task {
    struct task *next, **previous; /* previous: the pointer to it; NULL if it is not scheduled */
    void (*run)(struct task *);
};

struct tasks {
    struct task *first, **last;
    size_t count;
};

void tasks_init(struct tasks *tasks);
/* Appends the task; one that is scheduled already keeps its place. */
void task_schedule(struct tasks *tasks, struct task *task);
/* Does nothing if it is not scheduled. */
void task_cancel(struct tasks *tasks, struct task *task);
/* Runs the tasks that are scheduled now. What they schedule waits for the next turn. */
void tasks_run(struct tasks *tasks);

static inline bool task_is_scheduled(const struct task *task)
{
    return task->previous != NULL;
}

#endif
