/* What follows from a message, whichever protocol it came in. */
#ifndef PYSIDECAR_L7_MESSAGE_H
#define PYSIDECAR_L7_MESSAGE_H

#include "l7/codec.h"

/* What requests are routed by, whichever version of HTTP a connection speaks. */
static inline enum dp_protocol protocol_family(enum dp_protocol protocol)
{
    return protocol == DP_HTTP2 || protocol == DP_GRPC ? DP_HTTP1 : protocol;
}

/* Whether a field of that name authenticates the connection, not the request: NTLM and Negotiate
 * (RFC 4559, 6). The next request on it would be the same user's, whoever sends it. */
bool message_binds_connection(const struct message *message, struct text name);

#endif
