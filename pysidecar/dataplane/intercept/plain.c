#include "intercept/plain.h"

#include "base/sockaddr.h"
#include "net/budget.h"

static void plain_accept(struct worker *worker, const struct listener *listener, int fd)
{
    struct session *session = session_accept(worker, listener, fd);

    if (session)
        session_accepted(session, address_of_local(fd, &session->origin.original_destination));
}

const struct intercept intercept_plain = {
    .fds = FDS_PER_RELAY,
    .is_tcp = true,
    .accept = plain_accept,
    .refuse = session_refuse_connected,
};
