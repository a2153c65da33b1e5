#include "net/spares.h"

#include <sys/eventfd.h>
#include <unistd.h>

/* An open file each, as a copy of one would not be: the system may be out of files, too. */
void spares_keep(struct worker *worker)
{
    struct spares *spares = worker->spares;

    for (int i = 0; i < FDS_TO_REFUSE; i++) {
        if (spares->fds[i] == 0)
            spares->fds[i] = eventfd(0, EFD_CLOEXEC) + 1;
        if (spares->fds[i] == 0)
            return;
    }
    spares->given_up = false;
}

bool spares_give_up(struct worker *worker)
{
    struct spares *spares = worker->spares;
    bool had = false;

    for (int i = 0; i < FDS_TO_REFUSE; i++) {
        if (spares->fds[i] == 0)
            continue;
        close(spares->fds[i] - 1);
        spares->fds[i] = 0;
        had = true;
    }
    spares->given_up = true;
    return had;
}
