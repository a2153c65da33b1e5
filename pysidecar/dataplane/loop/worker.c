#include "loop/worker.h"

#include <unistd.h>

void worker_wake(struct worker *worker)
{
    uint64_t one = 1;

    if (write(worker->mail.fd, &one, sizeof one) < 0)
        return; /* at its limit it is readable all the same */
}
