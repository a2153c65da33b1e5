/* Users, as clients: who may use the listeners for PROXY v2 headers, which have no permissions as
 * the control socket has, and how many connections of one user may keep us waiting. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "diag.h"
#include "internal.h"

enum {
    FEWEST_WAITING = 64, /* connections of a user that have always room */
    WAITING_SHARE =
        16, /* of the fds: one for so many is a user's connection that keeps us waiting */
};

static int compare(const void *a, const void *b)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;

    return (left > right) - (left < right);
}

int dp_set_clients(struct dp *dp, int everybody_else, const uint32_t *uids, size_t count)
{
    uint32_t *sorted = calloc(count ? count : 1, sizeof *sorted);

    if (!sorted)
        return -ENOMEM;
    if (count)
        memcpy(sorted, uids, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, compare);
    free(dp->clients.uids);
    dp->clients.uids = sorted;
    dp->clients.count = count;
    dp->clients.everybody_else = everybody_else;
    return 0;
}

static bool may_use(const struct dp *dp, uint32_t uid)
{
    const struct clients *clients = &dp->clients;
    bool listed;

    if (uid != UINT32_MAX && foreign_is_trusted(dp, uid))
        return true;
    listed = clients->count > 0 &&
             bsearch(&uid, clients->uids, clients->count, sizeof uid, compare) != NULL;
    return clients->everybody_else ? !listed : listed;
}

bool clients_admit(struct connection *connection)
{
    struct worker *worker = connection->worker;
    struct mosnhook_address here;

    if (address_of_local(connection->side[DOWNSTREAM].watch.fd, &here) == 0)
        connection->uid = diag_user(&worker->diag, &connection->source, &here);
    return may_use(worker->dp, connection->uid);
}

bool clients_has_process(uint32_t uid, uint32_t pid)
{
    char path[32];
    struct stat status;

    (void)snprintf(path, sizeof path, "/proc/%u", pid);
    return pid != 0 && uid != UINT32_MAX && stat(path, &status) == 0 && status.st_uid == uid;
}

static atomic_uint *waiting_of(struct dp *dp, uint32_t uid)
{
    return &dp->clients.waiting[(uid * 0x9e3779b1u >> 16) % CLIENT_SLOTS];
}

bool clients_may_wait(struct connection *connection)
{
    struct dp *dp = connection->worker->dp;
    atomic_uint *waiting = waiting_of(dp, connection->uid);
    unsigned most = (unsigned)dp->fds_budget / WAITING_SHARE;

    if (connection->waiting)
        return true;
    if (most < FEWEST_WAITING)
        most = FEWEST_WAITING;
    if (atomic_fetch_add_explicit(waiting, 1, memory_order_relaxed) >= most) {
        atomic_fetch_sub_explicit(waiting, 1, memory_order_relaxed);
        return false;
    }
    connection->waiting = true;
    return true;
}

void clients_waited(struct connection *connection)
{
    if (!connection->waiting)
        return;
    connection->waiting = false;
    atomic_fetch_sub_explicit(waiting_of(connection->worker->dp, connection->uid), 1,
                              memory_order_relaxed);
}
