#include "intercept/plain.h"

#include <errno.h>
#include <unistd.h>

#include "base/sockaddr.h"
#include "net/budget.h"

static void plain_accept(struct worker *worker, const struct listener *listener, int fd)
{
    struct session *session = session_open(worker, listener, &intercept_connected, FDS_PER_RELAY);
    int error;

    if (!session) {
        close(fd);
        return;
    }
    session->downstream.watch.fd = fd;
    if (address_of_peer(fd, &session->origin.source) < 0) {
        session_close(session, DP_END_DOWNSTREAM_RESET, ECONNRESET);
        return;
    }
    error = address_of_local(fd, &session->origin.original_destination);
    trace_address(worker, session->id, requested, &session->origin.original_destination);
    session_downstream_waits(session);
    if (error == 0)
        error = channel_watch(&worker->loop, &session->downstream);
    if (error < 0)
        session_close(session, DP_END_NO_RESOURCES, -error);
    else
        session_arrived(session);
}

const struct intercept intercept_plain = {
    .fds = FDS_PER_RELAY,
    .is_tcp = true,
    .accept = plain_accept,
    .refuse = session_refuse_connected,
};
