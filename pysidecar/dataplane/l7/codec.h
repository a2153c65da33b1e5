/* A protocol of requests, without I/O: bytes in, messages out, and back. No descriptor, no clock,
 * no memory of its own, so that it can be tested and fuzzed alone.
 *
 * Of HTTP/2 the codec knows heads alone, see l7/http2_head.h. Of the others there are two kinds of
 * codecs. One that does not multiplex (HTTP/1.1) has one request at a time on a connection, whose
 * body passes piece by piece: HEAD, DATA ..., END. One that multiplexes (Bolt, Dubbo) has frames
 * with an id, and tells of one when all of it is there: HEAD, with the frame, and nothing else. */
#ifndef PYSIDECAR_L7_CODEC_H
#define PYSIDECAR_L7_CODEC_H

#include "base/terms.h"
#include "base/text.h"

struct http2_stream;
struct trace_fields;

enum { MAX_FIELDS = 128 }; /* of a message; a limit may be lower, see struct limits */

/* What a message may have at most; from the configuration. */
struct limits {
    uint32_t line_bytes;  /* of an HTTP request line: 414 */
    uint32_t head_bytes;  /* of an HTTP head with its line: 431 */
    uint32_t fields;      /* of an HTTP head, at most MAX_FIELDS: 431 */
    uint32_t frame_bytes; /* of a frame of Bolt or Dubbo */
};

struct field {
    struct text name, value;
};

enum message_kind {
    MESSAGE_REQUEST,
    MESSAGE_ONEWAY,    /* a request that gets no answer */
    MESSAGE_HEARTBEAT, /* is answered by whoever gets it, and never passed on */
    MESSAGE_RESPONSE,
    MESSAGE_INTERIM,          /* HTTP 1xx but 101: the final answer follows */
    MESSAGE_HEARTBEAT_ANSWER, /* never passed on */
};

/* What a request says that its answers depend on; kept while it is under way. Zero: an HTTP/1.1
 * request that has nothing particular. */
struct facts {
    bool http10;     /* the client speaks HTTP/1.0: no chunks, no interim answers */
    bool head;       /* HEAD: the answer has no body */
    bool keep_alive; /* the client goes on with the connection after the answer */
    bool upgrade;    /* asks for another protocol: 101 may come */
    bool connect;    /* CONNECT: what follows a good answer is for somebody else */
    bool grpc;       /* HTTP/2: a call of gRPC, and so is every answer */
    bool heartbeat;
    uint8_t version;       /* Bolt: 1; v2: 0x20 and its second version, 1 or 2; 0 is as 1 */
    uint8_t serialization; /* Bolt's codec byte, Dubbo's serialization id */
    uint8_t options;       /* Bolt v2: the switch byte */
};

/* What decode() has found. Texts point into its input and are valid until the caller changes that.
 */
struct message {
    enum message_kind kind;
    struct facts facts;           /* of requests */
    uint64_t id;                  /* of a frame, as it came */
    enum dp_protocol protocol;    /* of requests, where it is not the connection's: DP_GRPC */
    struct http2_stream *carrier; /* HTTP/2: that it came on */

    /* Of requests: what routes are chosen by. Empty where the protocol has no such thing. */
    struct text service;   /* HTTP: the host without its port; Bolt: the target service; Dubbo: the
                            * path */
    struct text authority; /* HTTP: the host with its port, as the client wrote it */
    struct text group, version; /* Dubbo, and its triple */
    struct text rpc;            /* gRPC: the service, as its path has it; empty: there is none */
    bool triple;                /* gRPC: from a client of Dubbo's */
    struct text method;
    struct text scheme;    /* HTTP/2 */
    struct text path;      /* HTTP: with its query, always beginning with "/" or "*" */
    struct text target;    /* HTTP: what was sent instead, as to a proxy; empty: the path */
    uint32_t timeout_ms;   /* that the request itself asks for; 0: none */
    bool idempotent;       /* may be sent again (RFC 9110, 9.2.2) */
    bool expects_continue; /* HTTP: waits for 100 before it sends its body */

    /* Of responses. */
    uint32_t status;    /* as the protocol numbers them */
    struct text reason; /* HTTP: the phrase beside it */
    bool succeeded;     /* the status is a good one */
    bool
        service_failed; /* the service answered with an exception of its own: no fault of the way */
    bool refused;       /* the endpoint says that it has not begun to serve the request */
    bool has_grpc_status; /* also of trailers */
    uint8_t grpc_status;
    bool upgraded; /* HTTP 101, or CONNECT: what follows on both sides is another protocol */

    /* Of both. */
    /* HTTP: headers, or with CODEC_END trailers; Bolt: the header section; Dubbo: attachments that
     * are strings. Valid until the thread decodes again, whichever connection's. */
    const struct field *fields;
    uint32_t field_count;
    /* Dubbo, requests: where more attachments can be put; NULL: nowhere. */
    const char *attachments_end;
    bool splits_cookie; /* HTTP/2: there is more than one, which are one */
    bool has_body;      /* DATA may follow; END follows in any case */
    bool until_close;   /* an answer that ends with the connection */
    uint64_t body_size; /* UINT64_MAX: not known before its end */
    bool last;          /* the peer ends the connection after this message */
    struct text frame;  /* codecs that multiplex: all of it; else, by wire.c, the head as it came */

    struct text data; /* CODEC_DATA */

    /* CODEC_MORE: so many bytes from the beginning of the input are needed at least; 0: not known
     */
    uint64_t wanted;
    /* CODEC_ERROR */
    uint16_t http_status; /* to answer with: 400, 414, 417, 431, 501, 505 */
    const char *problem;  /* for people, in few words without anything of the input */
};

enum codec_event {
    CODEC_MORE, /* the message goes on: again with the same bytes (but those consumed) and more */
    CODEC_HEAD,
    CODEC_DATA,
    CODEC_END,   /* `fields` are the trailers */
    CODEC_ERROR, /* nothing may be read from the connection any more */
};

/* The state of one direction of a connection. Begin with zeros, then set `limits` and `response`.
 */
struct decoder {
    const struct limits *limits;
    bool response;    /* it reads answers */
    uint8_t state;    /* the codec's; 0: between two messages */
    bool plain;       /* `left` is of a body that needs no decoding */
    bool last;        /* nothing is read behind the message that is under way */
    uint32_t scanned; /* bytes of the input that the codec need not look at again */
    uint64_t left; /* bytes of the body, or of the chunk, that are still to come; UINT64_MAX: until
                    * the end of the connection */
    struct facts facts; /* HTTP: of the request that is answered, see codec.expect */
};

/* The state of one direction of a connection that is written to. Begin with zeros. */
struct encoder {
    bool chunked; /* the body is sent in chunks */
    bool close;   /* the connection is to be closed after this message (and the message says so) */
    bool no_body; /* DATA is dropped */
};

/* How a request or a response is to be changed on its way. */
struct rewrite {
    struct text host;          /* empty: as it is */
    uint32_t path_prefix_size; /* so much of the path is replaced */
    struct text path_prefix;   /* by this; at == NULL: as it is */
    const struct field *set;   /* replace those with the name, or are added */
    const struct text *remove;
    uint32_t set_count, remove_count;
    struct text original_destination; /* name of a header to put it in; empty: none */
};

struct adjustment {
    uint64_t id;                      /* of frames: the one on the connection that is written to */
    const struct rewrite *rewrite;    /* NULL: none */
    struct text original_destination; /* as address:port */
    /* Requests: what is said of their trace in place of what came, as far as `fields` of the
     * message are all that came; NULL: nothing. What `rewrite` says of the same fields counts more.
     */
    const struct trace_fields *trace;
    struct facts facts; /* responses: of the request that they answer */
    bool close;         /* responses: say that the connection ends */
    /* HTTP: between a client and whom it connected to itself, which may be a proxy, with nobody
     * else's requests on either connection. */
    bool direct;
};

/* An answer of our own. */
struct rejection {
    enum dp_flag flag;    /* why: decides the status */
    uint16_t http_status; /* HTTP: instead of the flag's; 0: the flag's */
    uint8_t own_status;   /* Bolt, Dubbo: likewise */
    struct text reason;   /* few words for the client, ASCII, no line ends; may be empty */
    bool close;           /* HTTP: say that the connection ends */
    uint32_t *status;     /* stores which status was answered */
};

enum detection {
    DETECT_NO,
    DETECT_MORE, /* it may be: more bytes are needed */
    DETECT_YES,
};

struct codec {
    const char *name;
    enum dp_protocol protocol;
    bool multiplexes;
    bool is_http2;

    /* Whether a connection begins as one of requests in this protocol. At least 1 byte. */
    enum detection (*detect)(const uint8_t *data, size_t size);
    /* Reads at most one event from the input. Stores in *consumed how many bytes of the input are
     * done with (also with DATA, whose text is among them). Gives the same messages for any split
     * of the input, but for where DATA is cut. At the end of the connection: see `finish`. */
    enum codec_event (*decode)(struct decoder *decoder, const uint8_t *data, size_t size,
                               size_t *consumed, struct message *message);
    /* The connection has ended. CODEC_END: so has the message; CODEC_MORE: there was none under
     * way; CODEC_ERROR: it is cut off. */
    enum codec_event (*finish)(struct decoder *decoder, struct message *message);
    /* The next response answers a request with these facts. NULL where it does not matter. */
    void (*expect)(struct decoder *decoder, const struct facts *facts);

    /* Each of these writes to `to` and returns the number of bytes; 0: there is too little room.
     * No message grows by more than ENCODING_ROOM, and what its rewriting adds. */

    /* A request for an upstream, or an answer for a downstream: the head, or the whole frame. */
    size_t (*encode)(struct encoder *encoder, const struct message *message,
                     const struct adjustment *adjustment, uint8_t *to, size_t room);
    /* An answer of our own. */
    size_t (*reject)(const struct facts *facts, uint64_t id, const struct rejection *rejection,
                     uint8_t *to, size_t room);

    /* Only where it multiplexes. */
    size_t (*heartbeat)(const struct facts *facts, uint64_t id, uint8_t *to, size_t room);
    size_t (*answer_heartbeat)(const struct message *message, uint8_t *to, size_t room);

    /* Only where it does not. What stands before `size` bytes of a body (> 0), and behind them. May
     * be 0 bytes. */
    size_t (*before_data)(const struct encoder *encoder, uint64_t size, uint8_t *to);
    size_t (*after_data)(const struct encoder *encoder, uint8_t *to);
    /* What ends a body, with the trailers of the message. Like encode, but 0 may be right. */
    size_t (*end)(const struct encoder *encoder, const struct message *message, uint8_t *to,
                  size_t room);
};

enum {
    ENCODING_ROOM = 1024,
    DATA_ROOM = 32, /* for before_data and after_data */
};

/* By enum dp_protocol; NULL where there is none (DP_TCP, DP_AUTO). A new protocol is registered in
 * codecs.c. */
const struct codec *codec_of(enum dp_protocol protocol);

extern const struct codec codec_http1, codec_http2, codec_bolt, codec_dubbo;

#endif
