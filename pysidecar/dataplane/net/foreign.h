/* Descriptors that others passed to us: what they are, and closing them without waiting. */
#ifndef PYSIDECAR_NET_FOREIGN_H
#define PYSIDECAR_NET_FOREIGN_H

#include <stdbool.h>
#include <stdint.h>

#include "loop/worker.h"

struct foreign;

/* NULL when out of memory. It outlives its release while a close waits. */
struct foreign *foreign_create(void);
void foreign_release(struct foreign *foreign); /* NULL is allowed */
/* How many descriptors wait to be closed. */
int foreign_pending(const struct foreign *foreign);

/* IPPROTO_TCP or IPPROTO_MPTCP; -1 if it is not a TCP socket. */
int foreign_protocol(int fd);
/* Whether the kernel tells which network namespace a socket is in (5.14 or later). */
bool foreign_namespace_is_known(const struct foreign *foreign);
/* Whether the socket is in our network namespace; true where the kernel does not tell. */
bool foreign_is_here(const struct foreign *foreign, int fd);
/* Whether the user could stop us anyway: root, and the one as whom we run. */
bool foreign_is_trusted(const struct foreign *foreign, uint32_t uid);
/* Closes a descriptor that the user passed, without waiting, unless it is -1. Sets it to -1. */
void foreign_close(struct foreign *foreign, uint32_t uid, int *fd);
/* The same for the user's connection of the control socket. */
void foreign_close_watch(struct worker *worker, uint32_t uid, struct watch *watch);
/* The same for the control socket, where connections may still wait. */
void foreign_close_listener(struct foreign *foreign, int fd);

#endif
