#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "base/sockaddr.h"

const struct mosnhook_address loopback_address[2] = {
    {.ip = {[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1}},
    {.ip = {[15] = 1}},
};

bool address_is_zero(const struct mosnhook_address *address)
{
    static const struct mosnhook_address zero;

    return memcmp(address, &zero, sizeof zero) == 0;
}

socklen_t address_to_socket(const struct mosnhook_address *address,
                            struct sockaddr_storage *socket_address)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)socket_address;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)socket_address;

    memset(socket_address, 0, sizeof *socket_address);
    if (address_is_ipv4(address)) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(address->port);
        memcpy(&v4->sin_addr, address->ip + 12, 4);
        return sizeof *v4;
    }
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(address->port);
    v6->sin6_scope_id = address->scope_id;
    memcpy(&v6->sin6_addr, address->ip, 16);
    return sizeof *v6;
}

void address_from_socket(struct mosnhook_address *address,
                         const struct sockaddr_storage *socket_address)
{
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)socket_address;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)socket_address;

    memset(address, 0, sizeof *address);
    if (socket_address->ss_family == AF_INET) {
        memcpy(address->ip, address_ipv4_prefix, sizeof address_ipv4_prefix);
        memcpy(address->ip + 12, &v4->sin_addr, 4);
        address->port = ntohs(v4->sin_port);
    } else if (socket_address->ss_family == AF_INET6) {
        memcpy(address->ip, &v6->sin6_addr, 16);
        address->port = ntohs(v6->sin6_port);
        address->scope_id = v6->sin6_scope_id;
    }
}

size_t address_format(const struct mosnhook_address *address, char text[ADDRESS_TEXT_BYTES])
{
    char host[INET6_ADDRSTRLEN];
    bool ipv4 = address_is_ipv4(address);
    int length;

    if (!inet_ntop(ipv4 ? AF_INET : AF_INET6, ipv4 ? address->ip + 12 : address->ip, host,
                   sizeof host))
        return 0;
    length = snprintf(text, ADDRESS_TEXT_BYTES, ipv4 ? "%s:%u" : "[%s]:%u", host, address->port);
    return length < 0 ? 0 : (size_t)length;
}

int address_of_local(int fd, struct mosnhook_address *address)
{
    struct sockaddr_storage name;
    socklen_t length = sizeof name;

    if (getsockname(fd, (struct sockaddr *)&name, &length) < 0)
        return -errno;
    address_from_socket(address, &name);
    return 0;
}

int address_of_peer(int fd, struct mosnhook_address *address)
{
    struct sockaddr_storage name;
    socklen_t length = sizeof name;

    if (getpeername(fd, (struct sockaddr *)&name, &length) < 0)
        return -errno;
    address_from_socket(address, &name);
    return 0;
}
