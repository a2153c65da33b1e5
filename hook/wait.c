/* Waits as connect() does (SO_SNDTIMEO, signals, cancellation), and keeps an eye on the sidecar.
 *
 * Cancellation is off while the hook holds a descriptor or has changed the socket, except here,
 * where a handler closes the descriptor. Handlers are registered by _pthread_cleanup_push, the
 * function behind the macro, as the macro needs private names of libc's headers. */
#include <errno.h>
#include <poll.h>
#include <signal.h>

#include "mosnhook.h"
#include "sys.h"

enum {
    CANCEL_DISABLE = 1,       /* PTHREAD_CANCEL_DISABLE of glibc and musl */
    CANCEL_ASYNCHRONOUS = 1,  /* PTHREAD_CANCEL_ASYNCHRONOUS, likewise */
    FULL_CHECK_MS = 5,        /* how often to look whether there is room again */
    CLEANUP_BUFFER_SIZE = 64, /* struct _pthread_cleanup_buffer: 32 in glibc, 24 in musl */

    /* Signals that libc keeps for itself: their handlers are not the program's. */
    FIRST_LIBC_SIGNAL = 32,
    LAST_LIBC_SIGNAL = 33,
    LAST_SIGNAL = 64,
};

void cancel_disable(struct attempt *attempt)
{
    if (libc()->pthread_setcancelstate)
        libc()->pthread_setcancelstate(CANCEL_DISABLE, &attempt->cancel_state);
}

void cancel_restore(struct attempt *attempt)
{
    int ours;

    if (libc()->pthread_setcancelstate)
        libc()->pthread_setcancelstate(attempt->cancel_state, &ours);
}

void wait_briefly(int ms)
{
    sys_poll(NULL, 0, ms);
}

static void close_owned(void *owned)
{
    sys_close(*(int *)owned);
}

/* The system call, in which the thread can be cancelled as in libc's poll(). libc's may be another
 * library's, with a clock of its own (libfaketime). */
static int cancellable_poll(struct attempt *attempt, struct pollfd *fds, unsigned long count,
                            int timeout_ms, int owned)
{
    _Alignas(16) char buffer[CLEANUP_BUFFER_SIZE];
    const struct libc *table = libc();
    bool guarded = owned >= 0 && table->pthread_cleanup_push && table->pthread_cleanup_pop;
    int result, type;

    /* Better a late cancellation than a leak. */
    if ((owned >= 0 && !guarded) || !table->pthread_setcanceltype)
        return sys_poll(fds, count, timeout_ms);
    if (guarded)
        table->pthread_cleanup_push(buffer, close_owned, &owned);
    cancel_restore(attempt);
    table->pthread_setcanceltype(CANCEL_ASYNCHRONOUS, &type);
    result = sys_poll(fds, count, timeout_ms);
    table->pthread_setcanceltype(type, &type);
    cancel_disable(attempt);
    if (guarded)
        table->pthread_cleanup_pop(buffer, 0);
    return result;
}

bool wait_restarts(void)
{
    for (int number = 1; number <= LAST_SIGNAL; number++) {
        struct sys_sigaction action;

        if ((number >= FIRST_LIBC_SIGNAL && number <= LAST_LIBC_SIGNAL) ||
            SYNCHRONOUS_SIGNALS >> (number - 1) & 1)
            continue;
        if (sys_sigaction(number, &action) == 0 && action.handler != (uintptr_t)SIG_DFL &&
            action.handler != (uintptr_t)SIG_IGN && !(action.flags & SA_RESTART))
            return false;
    }
    return true;
}

/* Waits for one slice: at most `ms`, and not beyond the deadline. The number of ready descriptors,
 * -EINTR or -EINPROGRESS. */
static int slice(struct attempt *attempt, struct pollfd *fds, unsigned long count, int ms,
                 int owned)
{
    int result;

    if (attempt->deadline) {
        int64_t left = attempt->deadline - now_ns();

        if (left <= 0)
            return -EINPROGRESS;
        if (left < (int64_t)ms * MS)
            ms = (int)((left + MS - 1) / MS);
    }
    if (!attempt->waits) {
        wait_briefly(ms);
        return 0;
    }
    result = cancellable_poll(attempt, fds, count, ms, owned);
    return result == -EINTR && !attempt->deadline && wait_restarts() ? 0 : result;
}

int wait_ready(struct attempt *attempt, int fd, short events, int owned)
{
    for (;;) {
        struct pollfd polled = {.fd = fd, .events = events};
        int result = slice(attempt, &polled, 1, HEARTBEAT_CHECK_MS, owned);

        if (result > 0)
            return 0;
        if (result < 0)
            return -result;
        if (!page_heartbeat())
            return OUTCOME_AWAY;
    }
}

int wait_pause(struct attempt *attempt, int ms)
{
    int result = slice(attempt, NULL, 0, ms, -1);

    return result < 0 ? -result : 0;
}

int wait_until(int64_t deadline, int fd, short events)
{
    int64_t left;

    while ((left = deadline - now_ns()) > 0) {
        struct pollfd polled = {.fd = fd, .events = events};

        if (sys_poll(&polled, 1, (int)((left + MS - 1) / MS)) > 0)
            return 0;
    }
    return EINPROGRESS;
}

bool wait_while_full(struct attempt *attempt)
{
    if (!attempt->give_up)
        attempt->give_up = wait_full_deadline(attempt);
    if (now_ns() >= attempt->give_up || !page_serving(&attempt->view))
        return false;
    wait_briefly(FULL_CHECK_MS);
    return true;
}

bool wait_for_room(struct attempt *attempt)
{
    if (!page_full())
        return true;
    if (!attempt->waits || attempt->view.when_away != MOSNHOOK_AWAY_REFUSE)
        return false;
    while (page_full())
        if (!wait_while_full(attempt))
            return false;
    return true;
}

int64_t wait_full_deadline(const struct attempt *attempt)
{
    int64_t budget = attempt->waits ? FULL_BUDGET_MS : FULL_BUDGET_NONBLOCKING_MS;
    int64_t deadline = now_ns() + budget * MS;

    return attempt->deadline && attempt->deadline < deadline ? attempt->deadline : deadline;
}
