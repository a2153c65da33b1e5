/* What is set on our TCP sockets, and how they connect. */
#ifndef PYSIDECAR_NET_SOCKET_H
#define PYSIDECAR_NET_SOCKET_H

#include <stdbool.h>

#include "base/sockaddr.h"

/* connect() of a non-blocking socket: 0 when it is connected already, as mostly on this host, where
 * the handshake is over when connect() returns; else -errno, with -EINPROGRESS. */
int socket_connect(int fd, const struct mosnhook_address *to);
/* The error that waits at the socket, which is taken; 0: there is none. */
int socket_take_error(int fd);
/* TCP_NODELAY, keepalive, urgent data in line, reset on close; 0 or -errno. */
int socket_tune(int fd);
/* For a socket that is not connected yet, and will be with another one of this host: there is no
 * network in between whose congestion could be controlled. What the host does about networks only
 * costs here: BBR paces, and takes a path without a delay for one that holds nothing. Reno does the
 * least, and is in every kernel for everybody; where it is not, the default does. */
void socket_tune_for_this_host(int fd);
/* The same for a socket of ours, which takes little that it cannot send: with the kernel's own
 * sizing, for distances that are none here, a sender would go on for many MiB whose receiver has
 * stopped reading. */
void socket_tune_towards_this_host(int fd);
/* Until it is taken back, or for 200 ms, no segment leaves that is not full; with shutdown() the
 * last one does, and says that it is. */
void socket_set_cork(int fd, bool on);
/* 0 or -errno. */
int socket_set_mark(int fd, uint32_t mark);
/* Binds to an address, with a port that the kernel picks when it connects. 0 or -errno. */
int socket_bind_source(int fd, const struct mosnhook_address *source);

#endif
