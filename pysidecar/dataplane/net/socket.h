/* Options of our TCP sockets, and connecting them. */
#ifndef PYSIDECAR_NET_SOCKET_H
#define PYSIDECAR_NET_SOCKET_H

#include "base/sockaddr.h"

/* connect() of a non-blocking socket. 0 if it is connected already, which is the rule on this host:
 * there the handshake is over when connect() returns. Else -errno, -EINPROGRESS among them. */
int socket_connect(int fd, const struct mosnhook_address *to);
/* Takes the socket's pending error; 0 if there is none. */
int socket_take_error(int fd);
/* TCP_NODELAY, keepalive, urgent data in line, reset on close; 0 or -errno. */
int socket_tune(int fd);
/* For a socket that will be connected to another one of this host. There is no network in between,
 * and what the host's congestion control does about networks only costs: BBR paces, and takes a
 * path without delay for one that holds nothing. Reno does the least, and every kernel lets
 * everybody use it; where one does not, the default stays. Call before connecting. */
void socket_tune_for_this_host(int fd);
/* The same for our own end, and bounds what it holds unsent: by the kernel's sizing, made for
 * distances, a sender would go on for many MiB after its receiver has stopped reading. */
void socket_tune_towards_this_host(int fd);
/* 0 or -errno. */
int socket_set_mark(int fd, uint32_t mark);
/* Binds to an address; the kernel picks the port when the socket connects. 0 or -errno. */
int socket_bind_source(int fd, const struct mosnhook_address *source);

#endif
