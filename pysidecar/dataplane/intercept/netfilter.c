#include "intercept/netfilter.h"

#include <errno.h>
#include <netinet/in.h>

#include "base/sockaddr.h"
#include "intercept/listener.h"
#include "net/budget.h"

/* From linux/netfilter_ipv4.h and linux/netfilter_ipv6/ip6_tables.h, which conflict with
 * netinet/in.h. */
#define SO_ORIGINAL_DST 80
#define IP6T_SO_ORIGINAL_DST 80

static int read_original_destination(int fd, struct mosnhook_address *destination)
{
    struct sockaddr_storage name = {0};
    socklen_t length = sizeof name;
    bool ipv4 = address_is_ipv4(destination); /* the caller has set the local address */

    if (getsockopt(fd, ipv4 ? SOL_IP : SOL_IPV6, ipv4 ? SO_ORIGINAL_DST : IP6T_SO_ORIGINAL_DST,
                   &name, &length) < 0)
        return -errno;
    address_from_socket(destination, &name);
    return 0;
}

/* Whether the connection came straight to the listener, without a rule. */
static bool is_unredirected(const struct session *session, const struct listener *listener,
                            const struct mosnhook_address *local)
{
    if (listener->settings.transport == DP_TRANSPORT_REDIRECT)
        return address_equal(&session->origin.original_destination, local);
    return listener->port == local->port;
}

static void netfilter_accept(struct worker *worker, const struct listener *listener, int fd)
{
    struct session *session = session_accept(worker, listener, fd);
    struct mosnhook_address local;
    int error;

    if (!session)
        return;
    error = address_of_local(fd, &local);
    session->origin.original_destination = local;
    if (error == 0 && listener->settings.transport == DP_TRANSPORT_REDIRECT)
        error = read_original_destination(fd, &session->origin.original_destination);
    if (error == -ENOENT || (error == 0 && is_unredirected(session, listener, &local)))
        session_close(session, DP_END_LOOP, 0);
    else
        session_accepted(session, error);
}

const struct intercept intercept_redirect = {
    .fds = FDS_PER_RELAY,
    .is_tcp = true,
    .accept = netfilter_accept,
    .refuse = session_refuse_connected,
};

const struct intercept intercept_tproxy = {
    .fds = FDS_PER_RELAY,
    .is_tcp = true,
    .accept = netfilter_accept,
    .refuse = session_refuse_connected,
};
