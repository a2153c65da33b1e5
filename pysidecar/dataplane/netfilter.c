/* Downstream connections that netfilter rules brought here. With REDIRECT the original destination
 * is in the connection's conntrack entry; with TPROXY there is no translation at all: the accepted
 * socket's own address is the original destination. */
#include <errno.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "internal.h"

/* Of linux/netfilter_ipv4.h and linux/netfilter_ipv6/ip6_tables.h, which do not go together with
 * netinet/in.h. */
#define SO_ORIGINAL_DST 80
#define IP6T_SO_ORIGINAL_DST 80

static int read_original_destination(int fd, struct mosnhook_address *destination)
{
    struct sockaddr_storage name = {0};
    socklen_t length = sizeof name;
    bool ipv4 = address_is_ipv4(destination); /* as the local address, which it is now */

    if (getsockopt(fd, ipv4 ? SOL_IP : SOL_IPV6, ipv4 ? SO_ORIGINAL_DST : IP6T_SO_ORIGINAL_DST,
                   &name, &length) < 0)
        return -errno;
    address_from_socket(destination, &name);
    return 0;
}

/* Whether the connection came by itself, straight to the listener. */
static bool is_unredirected(const struct connection *connection,
                            const struct mosnhook_address *local)
{
    struct mosnhook_address listening;

    if (connection->listener->settings.transport == DP_TRANSPORT_REDIRECT)
        return address_equal(&connection->original_destination, local);
    return address_of_local(connection->listener->fd, &listening) == 0 &&
           listening.port == local->port;
}

void netfilter_accept(struct worker *worker, const struct listener *listener, int fd)
{
    struct connection *connection = connection_open(worker, listener, PHASE_HEADER, FDS_PER_RELAY);
    struct mosnhook_address local;
    int error;

    if (!connection) {
        close(fd);
        return;
    }
    connection->side[DOWNSTREAM].watch.fd = fd;
    if (address_of_peer(fd, &connection->source) < 0) {
        connection_close(connection, DP_END_DOWNSTREAM_RESET, ECONNRESET);
        return;
    }
    error = address_of_local(fd, &local);
    connection->original_destination = local;
    if (error == 0 && listener->settings.transport == DP_TRANSPORT_REDIRECT)
        error = read_original_destination(fd, &connection->original_destination);
    if (error == -ENOENT || (error == 0 && is_unredirected(connection, &local))) {
        connection_close(connection, DP_END_LOOP, 0);
        return;
    }
    downstream_waits(connection);
    if (error == 0)
        error = loop_watch(&worker->loop, &connection->side[DOWNSTREAM].watch, SIDE_EVENTS);
    if (error < 0)
        connection_close(connection, DP_END_NO_RESOURCES, -error);
    else
        upstream_start(connection);
}
