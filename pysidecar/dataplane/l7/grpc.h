/* What gRPC says in the fields of HTTP/2, without messages: see
 * https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md */
#ifndef PYSIDECAR_L7_GRPC_H
#define PYSIDECAR_L7_GRPC_H

#include "l7/codec.h"

enum { GRPC_UNKNOWN = 2, GRPC_STATUSES = 17 };

/* Whether a content-type is gRPC's: application/grpc, perhaps with "+" or ";" behind it. */
bool grpc_is_type(struct text content_type);
/* A grpc-timeout in milliseconds, at least 1; 0: it is none. */
uint32_t grpc_timeout_ms(struct text value);
/* A grpc-status; GRPC_UNKNOWN where it is none. */
uint8_t grpc_status_of(struct text value);
/* What a client makes of an answer that is HTTP's alone
 * (https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md). */
uint8_t grpc_status_for_http(uint32_t status);
/* For an answer of ours. */
uint8_t grpc_status_for(const struct rejection *rejection);
/* As that of HTTP: 2 where it succeeded, 4 where the client is at fault, else 5. */
uint8_t grpc_class_of(uint8_t status);
/* "/package.Service/Method". False: the path is something else. */
bool grpc_split_path(struct text path, struct text *service, struct text *method);

#endif
