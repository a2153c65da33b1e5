/* Connections of clients that connect to a listener of ours by themselves, for a service. */
#ifndef PYSIDECAR_INTERCEPT_PLAIN_H
#define PYSIDECAR_INTERCEPT_PLAIN_H

#include "intercept/session.h"

extern const struct intercept intercept_plain;

#endif
