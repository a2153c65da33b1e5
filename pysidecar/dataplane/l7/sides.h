/* The two sides of a stream: how its answer is written to the connection that its request came on,
 * and how its request is written to an uplink. There is one pair for each kind of connection:
 * serial_sides.c where one request follows the other, frame_sides.c where they are whole frames,
 * http2_sides.c.
 * The sides of a stream may be of different kinds; what a stream does depends on neither. */
#ifndef PYSIDECAR_L7_SIDES_H
#define PYSIDECAR_L7_SIDES_H

#include "l7/codec.h"

struct stream;
struct uplink;
struct wire;

/* Where the answer goes. DP_FLAG_NONE, or why the stream fails. `size`: of what the part of the
 * message came in. */
struct downstream_side {
    bool by_id;   /* an answer needs the id of its request: without one there is none */
    bool goes_on; /* a request may go on when its answer has ended */

    /* The stream has just been made of this request. NULL: there is nothing to be done. */
    void (*begin)(struct stream *stream, const struct message *request);
    /* The head of an answer, which may be an interim one; or the whole frame. */
    enum dp_flag (*head)(struct stream *stream, const struct message *message, size_t size);
    enum dp_flag (*data)(struct stream *stream, const struct message *message);
    /* Its end, with its trailers. */
    enum dp_flag (*end)(struct stream *stream, const struct message *message, size_t size);
    /* An answer of our own. False: it cannot be written. */
    bool (*refuse)(struct stream *stream, struct rejection *rejection);
    /* Takes an answer back of which nothing has left yet. False: some of it has. */
    bool (*take_back)(struct stream *stream);
    /* An answer has begun and cannot be completed. Returns what the connection ends with once the
     * stream has ended; DP_END_NONE: it goes on. */
    enum dp_end (*cut)(struct stream *stream, enum dp_end why);
    /* The upstream has reset the stream with this code: so is the client's. NULL, or false: the
     * client is told in another way. */
    bool (*pass_reset)(struct stream *stream, uint32_t code);
    /* Whether nothing more of the answer should be written for now: see stream_downstream_sent. */
    bool (*is_behind)(const struct stream *stream);
    /* Whether something of it has not been taken by the client. */
    bool (*has_unsent)(const struct stream *stream);
    /* Reads on, or no longer, as the stream now is. */
    void (*update)(struct stream *stream);
    /* Whose bodies may be spliced, as they come in; NULL: nothing's. */
    struct wire *(*plain_wire)(const struct stream *stream);
    /* The stream ends. NULL: there is nothing to be done. */
    void (*leave)(struct stream *stream);
};

/* Where the request goes. Only send() without an uplink. */
struct upstream_side {
    bool encodes_at_once; /* the head is encoded before there is an uplink, and kept */
    bool takes_turns;     /* an uplink has one request at a time */

    /* All that there is of the request: see struct stream, `request` and `fresh`. False: it cannot
     * be written. */
    bool (*send)(struct stream *stream, struct uplink *uplink);
    bool (*data)(struct stream *stream, const struct message *message);
    bool (*end)(struct stream *stream, const struct message *message, size_t size);
    /* The stream `now` waits for the answer instead. NULL: that cannot be. */
    void (*adopt)(struct uplink *uplink, struct stream *before, struct stream *now);
    /* Whether the rest of the request is taken when its answer has ended. */
    bool (*goes_on)(const struct stream *stream);
    /* Whether nothing more of the request should be written for now: see stream_uplink_sent. */
    bool (*is_behind)(const struct stream *stream);
    /* Reads nothing more of the answer, until go_on(). */
    void (*hold)(struct stream *stream);
    void (*go_on)(struct stream *stream);
    bool (*is_held)(const struct stream *stream);
    /* When a byte of it came or went last; 0: not known. */
    uint64_t (*active_ms)(const struct stream *stream);
    /* Whether nothing of the request was sent; whether nothing came since. */
    bool (*is_unsent)(const struct stream *stream);
    bool (*is_unanswered)(const struct stream *stream);
    struct wire *(*plain_wire)(const struct stream *stream);
};

extern const struct downstream_side serial_downstream, frame_downstream, http2_downstream;
extern const struct upstream_side serial_upstream, frame_upstream, http2_upstream;

const struct downstream_side *downstream_side_of(const struct codec *codec);
const struct upstream_side *upstream_side_of(const struct codec *codec);

/* ---- what the implementations share ---- */

/* As wire_wrote(), for the downstream's wire: it is the client's. */
void side_wrote(struct stream *stream, size_t size);
/* Encodes a head, or a frame, for the downstream's wire. */
enum dp_flag side_write_head(struct stream *stream, const struct message *message, size_t size);
/* As downstream_side.refuse. */
bool side_write_refusal(struct stream *stream, const struct rejection *rejection);
bool side_has_unsent(const struct stream *stream);
void side_update(struct stream *stream);
/* Whether nothing was written to the uplink since the request was given to it. */
bool side_is_unsent(const struct stream *stream);

/* For what a kind of connection does not do. */
bool side_never(const struct stream *stream);
void side_do_nothing(struct stream *stream);
enum dp_flag side_drop_data(struct stream *stream, const struct message *message);
bool side_take_nothing_back(struct stream *stream);
struct wire *side_no_wire(const struct stream *stream);

#endif
