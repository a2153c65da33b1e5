/* Steps that take a descriptor, in a process that has none left.
 *
 * connect() needs none natively, so the program does not expect EMFILE from it. But a thread may
 * have a descriptor table of its own: one is started for the step, drops its copies of the
 * program's descriptors, and ends before anybody could notice. Raising RLIMIT_NOFILE for the moment
 * would not do: other threads would see it, children would keep it, two threads could restore it in
 * the wrong order, and the hard limit may be as low. */
#include <errno.h>
#include <sched.h>
#include <signal.h>

#include "mosnhook.h"
#include "sys.h"

#ifndef CLONE_VM /* only _GNU_SOURCE shows them */
#define CLONE_VM 0x100
#define CLONE_FS 0x200
#define CLONE_SIGHAND 0x800
#define CLONE_VFORK 0x4000
#define CLONE_THREAD 0x10000
#endif

struct step {
    int keep;
    void (*run)(void *);
    void *argument;
};

/* Closes all copies of the program's descriptors but one. Where the kernel cannot do that at once
 * (before 5.9), closes a single one; the others go with the thread. */
static void make_room(int keep)
{
    bool done = sys_close_range((unsigned)keep + 1, UINT32_MAX) == 0;

    if (keep > 0)
        done = done && sys_close_range(0, (unsigned)keep - 1) == 0;
    if (!done)
        sys_close(keep == 0 ? 1 : 0);
}

/* The thread. It closes all its descriptors itself, since the caller may go on before the kernel
 * would close them. */
static void run_step(void *argument)
{
    const struct step *step = argument;

    make_room(step->keep);
    step->run(step->argument);
    if (step->keep >= 0)
        sys_close(step->keep);
}

int apart(int keep, void (*run)(void *), void *argument)
{
    struct step step = {.keep = keep, .run = run, .argument = argument};
    uint64_t all = ~SYNCHRONOUS_SIGNALS, before = 0;
    long result;

    /* No handler may run in the thread: it has the caller's thread-local storage. */
    sys_sigprocmask(SIG_SETMASK, &all, &before);
    result = sys_clone_and_wait(CLONE_VM | CLONE_FS | CLONE_SIGHAND | CLONE_THREAD | CLONE_VFORK,
                                run_step, &step);
    sys_sigprocmask(SIG_SETMASK, &before, NULL);
    return result < 0 ? (int)result : 0;
}
