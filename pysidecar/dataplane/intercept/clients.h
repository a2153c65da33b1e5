/* Users as clients: who may use the listeners for PROXY v2 headers, which have no permissions as
 * the control socket has; how many connections of one user may keep us waiting; and how many file
 * descriptors one user may have. */
#ifndef PYSIDECAR_INTERCEPT_CLIENTS_H
#define PYSIDECAR_INTERCEPT_CLIENTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "loop/worker.h"

struct session;

enum { CLIENT_SLOTS = 1024 };

struct clients {
    uint32_t *uids; /* sorted */
    size_t count;
    bool everybody_else;
    /* By a hash of the uid, so users may share one: */
    atomic_uint waiting[CLIENT_SLOTS];
    atomic_int fds[CLIENT_SLOTS]; /* reserved for users who may not have all */
};

/* See dp_set_clients. 0 or -errno. */
int clients_set(struct clients *clients, bool everybody_else, const uint32_t *uids, size_t count);
void clients_free(struct clients *clients);
/* Asks the kernel whose connection it is, and says whether that user may use us. */
bool clients_admit(struct session *session);
/* Whether the process belongs to the user. */
bool clients_has_process(uint32_t uid, uint32_t pid);
/* Whether a session that has not said yet what it wants may wait. Counts it for its user. */
bool clients_may_wait(struct session *session);
/* The session waits no more. */
void clients_waited(struct session *session);
/* Whether the session's user, known by now, may have the descriptors that are reserved for it.
 * Counts them for the user. Each user leaves an eighth of what the others leave, so that something
 * is left for newcomers. */
bool clients_may_have_fds(struct session *session);
/* The session gives `count` of them back. */
void clients_release_fds(struct session *session, int count);

#endif
