/* What all programs of this folder have in common. */
#ifndef UNIT_UNIT_H
#define UNIT_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "contract.h"
#include "failing.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* Whether it ends by abort(), as an assertion does that does not hold. In a child. */
bool aborts(void (*call)(void *), void *argument);
/* How many descriptors are open. */
int open_descriptors(void);

/* 127.0.0.1. */
struct mosnhook_address on_loopback(uint16_t port);
/* A listener there that accepts without blocking; `*address` is where. */
int listen_on_loopback(struct mosnhook_address *address);
/* A port of it where nobody listens, as long as the descriptor is open. */
int closed_port(struct mosnhook_address *address);
/* Makes a listener answer nobody from now on, until it accepts: returns what waits for that. */
int fill_queue(int listener);
/* Two TCP sockets that are connected, as those of the data plane: they do not block. */
void tcp_pair(int fds[2]);
/* A socket whose close() waits until the peer has read everything, or is gone. */
int lingering_socket(int *peer);
/* Until poll() tells one of them. */
void await_events(int fd, short events);

#endif
