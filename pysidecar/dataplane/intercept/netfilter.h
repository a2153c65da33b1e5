/* Sessions that netfilter rules brought here. With REDIRECT the original destination is in the
 * connection's conntrack entry. TPROXY translates nothing: the accepted socket's own address is the
 * original destination. */
#ifndef PYSIDECAR_INTERCEPT_NETFILTER_H
#define PYSIDECAR_INTERCEPT_NETFILTER_H

#include "intercept/session.h"

extern const struct intercept intercept_redirect, intercept_tproxy;

#endif
