#include "l7/codec.h"

/* The protocols. A new one is registered here. */
static const struct codec *const codecs[DP_PROTOCOLS] = {
    [DP_HTTP1] = &codec_http1, [DP_BOLT] = &codec_bolt,  [DP_DUBBO] = &codec_dubbo,
    [DP_HTTP2] = &codec_http2, [DP_GRPC] = &codec_http2,
};

const struct codec *codec_of(enum dp_protocol protocol)
{
    return codecs[protocol];
}
