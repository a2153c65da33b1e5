/* What follows from a message, whichever protocol it came in. */
#ifndef PYSIDECAR_L7_MESSAGE_H
#define PYSIDECAR_L7_MESSAGE_H

#include "l7/codec.h"

/* Whether a field of that name authenticates the connection, not the request: NTLM and Negotiate
 * (RFC 4559, 6). The next request on it would be the same user's, whoever sends it. */
bool message_binds_connection(const struct message *message, struct text name);

#endif
