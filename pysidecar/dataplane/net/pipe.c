#include "net/pipe.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "net/budget.h"

enum {
    POOLED_PIPES = 32, /* empty pipes that a worker keeps open */
    FDS_PER_PIPE = 2,
};

/* Copying works without descriptors: the last of them are for connections. */
static struct pipe *pipe_open(struct budget *budget)
{
    struct pipe *pipe;
    int ends[2];

    if (!budget_reserve_spare(budget, FDS_PER_PIPE))
        return NULL;
    pipe = calloc(1, sizeof *pipe);
    if (!pipe || pipe2(ends, O_NONBLOCK | O_CLOEXEC) < 0) {
        free(pipe);
        budget_release(budget, FDS_PER_PIPE);
        return NULL;
    }
    /* An unprivileged user may have used up his pipe pages: a small pipe works too. */
    (void)fcntl(ends[1], F_SETPIPE_SZ, PIPE_SIZE);
    pipe->read_end = ends[0];
    pipe->write_end = ends[1];
    return pipe;
}

static void pipe_close(struct budget *budget, struct pipe *pipe)
{
    close(pipe->read_end);
    close(pipe->write_end);
    free(pipe);
    budget_release(budget, FDS_PER_PIPE);
}

struct pipe *pipe_acquire(struct worker *worker)
{
    struct pipes *pipes = worker->pipes;
    struct pipe *pipe = pipes->first;

    if (pipe) {
        pipes->first = pipe->next;
        pipes->count--;
    } else {
        pipe = pipe_open(worker->budget);
    }
    if (pipe)
        counter_add(&worker->counters.buffers, 1);
    return pipe;
}

void pipe_give_back(struct worker *worker, struct pipe *pipe)
{
    struct pipes *pipes = worker->pipes;

    counter_add(&worker->counters.buffers, -1);
    if (pipe->held > 0 || pipes->count == POOLED_PIPES) {
        pipe_close(worker->budget, pipe);
        return;
    }
    pipe->next = pipes->first;
    pipes->first = pipe;
    pipes->count++;
}

void pipes_close(struct worker *worker)
{
    struct pipes *pipes = worker->pipes;

    while (pipes->first) {
        struct pipe *pipe = pipes->first;

        pipes->first = pipe->next;
        pipe_close(worker->budget, pipe);
    }
    pipes->count = 0;
}
