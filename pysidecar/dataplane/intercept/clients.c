#include "intercept/clients.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/sockaddr.h"
#include "intercept/session.h"
#include "net/budget.h"
#include "net/diag.h"
#include "net/foreign.h"

enum {
    FEWEST_WAITING = 64, /* connections of a user that may always wait */
    WAITING_SHARE =
        16, /* of the budget: a user's connections that wait have at most this fraction */
};

/* A user may have this many times the free descriptors: one alone gets 7/8, two get 7/15 each. Even
 * then more are left than when the page says that we are full. */
enum { MOST_OF_FREE = 7 };

static int compare(const void *a, const void *b)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;

    return (left > right) - (left < right);
}

int clients_set(struct clients *clients, bool everybody_else, const uint32_t *uids, size_t count)
{
    uint32_t *sorted = calloc(count ? count : 1, sizeof *sorted);

    if (!sorted)
        return -ENOMEM;
    if (count)
        memcpy(sorted, uids, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, compare);
    free(clients->uids);
    clients->uids = sorted;
    clients->count = count;
    clients->everybody_else = everybody_else;
    return 0;
}

void clients_free(struct clients *clients)
{
    free(clients->uids);
}

static bool may_use(const struct worker *worker, uint32_t uid)
{
    const struct clients *clients = worker->clients;
    bool listed;

    if (uid != UINT32_MAX && foreign_is_trusted(worker->foreign, uid))
        return true;
    listed = clients->count > 0 &&
             bsearch(&uid, clients->uids, clients->count, sizeof uid, compare) != NULL;
    return clients->everybody_else ? !listed : listed;
}

bool clients_admit(struct session *session)
{
    struct worker *worker = session->worker;
    struct mosnhook_address here;

    if (address_of_local(session->downstream.watch.fd, &here) == 0)
        session->uid = diag_user(&worker->diag, &session->origin.source, &here);
    return may_use(worker, session->uid);
}

bool clients_has_process(uint32_t uid, uint32_t pid)
{
    char path[32];
    struct stat status;

    (void)snprintf(path, sizeof path, "/proc/%u", pid);
    return pid != 0 && uid != UINT32_MAX && stat(path, &status) == 0 && status.st_uid == uid;
}

static uint32_t slot_of(uint32_t uid)
{
    return (uid * 0x9e3779b1u >> 16) % CLIENT_SLOTS;
}

static atomic_uint *waiting_of(struct clients *clients, uint32_t uid)
{
    return &clients->waiting[slot_of(uid)];
}

bool clients_may_wait(struct session *session)
{
    atomic_uint *waiting = waiting_of(session->worker->clients, session->uid);
    unsigned most = (unsigned)session->worker->budget->most / WAITING_SHARE;

    if (session->waiting)
        return true;
    if (most < FEWEST_WAITING)
        most = FEWEST_WAITING;
    if (atomic_fetch_add_explicit(waiting, 1, memory_order_relaxed) >= most) {
        atomic_fetch_sub_explicit(waiting, 1, memory_order_relaxed);
        return false;
    }
    session->waiting = true;
    return true;
}

void clients_waited(struct session *session)
{
    if (!session->waiting)
        return;
    session->waiting = false;
    atomic_fetch_sub_explicit(waiting_of(session->worker->clients, session->uid), 1,
                              memory_order_relaxed);
}

/* Whether others could need what the user takes. */
static bool has_to_share(const struct worker *worker, uint32_t uid)
{
    const struct clients *clients = worker->clients;

    return (clients->everybody_else || clients->count > 1) && uid != UINT32_MAX &&
           !foreign_is_trusted(worker->foreign, uid);
}

bool clients_may_have_fds(struct session *session)
{
    const struct worker *worker = session->worker;
    const struct budget *budget = worker->budget;
    int fds = session->fds_reserved;

    if (!has_to_share(worker, session->uid))
        return true;
    session->shares = true;
    fds += atomic_fetch_add_explicit(&worker->clients->fds[slot_of(session->uid)], fds,
                                     memory_order_relaxed);
    return fds <= MOST_OF_FREE * (budget->most - budget_used(budget));
}

void clients_release_fds(struct session *session, int count)
{
    if (session->shares)
        atomic_fetch_sub_explicit(&session->worker->clients->fds[slot_of(session->uid)], count,
                                  memory_order_relaxed);
}
