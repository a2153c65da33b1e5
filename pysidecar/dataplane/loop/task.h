/* Work that its owner wants to go on with in the next turn of the loop. */
#ifndef PYSIDECAR_LOOP_TASK_H
#define PYSIDECAR_LOOP_TASK_H

#include <stdbool.h>
#include <stddef.h>

/* Embedded in its owner. Zero but for `run` is a task that is not scheduled. */
struct task {
    struct task *next, **previous; /* previous: what points to it; NULL: it is not scheduled */
    void (*run)(struct task *);
};

struct tasks {
    struct task *first, **last;
    size_t count;
    struct task end; /* behind those that are run in this turn */
};

void tasks_init(struct tasks *tasks);
/* Behind all others; one that is scheduled stays where it is. */
void task_schedule(struct tasks *tasks, struct task *task);
/* One that is not scheduled stays that. */
void task_cancel(struct tasks *tasks, struct task *task);
/* Runs those that are scheduled now; what they schedule waits for the next turn. */
void tasks_run(struct tasks *tasks);

static inline bool task_is_scheduled(const struct task *task)
{
    return task->previous != NULL;
}

#endif
