/* Descriptors that others passed to us: what they are, and how they are closed without waiting. */
#ifndef PYSIDECAR_NET_FOREIGN_H
#define PYSIDECAR_NET_FOREIGN_H

#include <stdbool.h>
#include <stdint.h>

#include "loop/worker.h"

struct foreign;

/* NULL when out of memory. Outlives its release while a close waits. */
struct foreign *foreign_create(void);
void foreign_release(struct foreign *foreign); /* NULL is allowed */
/* Descriptors that are not closed yet. */
int foreign_pending(const struct foreign *foreign);

/* IPPROTO_TCP or IPPROTO_MPTCP; -1 for whatever is no TCP socket. */
int foreign_protocol(int fd);
/* Whether the kernel tells in which network namespace a socket is (since 5.14). */
bool foreign_namespace_is_known(const struct foreign *foreign);
/* Whether the socket is in our network namespace, as far as the kernel tells. */
bool foreign_is_here(const struct foreign *foreign, int fd);
/* Whether that user could stop us anyway. */
bool foreign_is_trusted(const struct foreign *foreign, uint32_t uid);
/* Closes what that user passed (or not: -1), without waiting, and makes it -1. */
void foreign_close(struct foreign *foreign, uint32_t uid, int *fd);
/* The same of that user's connection of the control socket. */
void foreign_close_watch(struct worker *worker, uint32_t uid, struct watch *watch);
/* The same of the control socket, where connections may still wait. */
void foreign_close_listener(struct foreign *foreign, int fd);

#endif
