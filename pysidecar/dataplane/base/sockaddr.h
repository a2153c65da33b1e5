#ifndef PYSIDECAR_BASE_SOCKADDR_H
#define PYSIDECAR_BASE_SOCKADDR_H

#include <stdbool.h>
#include <sys/socket.h>

#include "address.h"

extern const struct mosnhook_address loopback_address[2]; /* IPv4, IPv6; port 0 */

/* Returns the length of the socket address. */
socklen_t address_to_socket(const struct mosnhook_address *address,
                            struct sockaddr_storage *socket_address);
/* Leaves a zero address for families other than IPv4 and IPv6. */
void address_from_socket(struct mosnhook_address *address,
                         const struct sockaddr_storage *socket_address);
/* Not an address at all: never set. (The unspecified IPv4 address is not zero, it is v4-mapped.) */
bool address_is_zero(const struct mosnhook_address *address);
enum { ADDRESS_TEXT_BYTES = 64 };
/* Writes an address as host:port, with an IPv6 host in brackets. Returns the length. */
size_t address_format(const struct mosnhook_address *address, char text[ADDRESS_TEXT_BYTES]);
/* 0 or -errno. */
int address_of_local(int fd, struct mosnhook_address *address);
int address_of_peer(int fd, struct mosnhook_address *address);

#endif
