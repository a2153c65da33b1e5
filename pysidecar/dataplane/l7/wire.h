/* A connection that messages are read from and written to: a channel, with the codec's state, what
 * was read and not decoded, and what was written and not sent.
 *
 * Everything that a turn of the loop writes to a wire leaves together, at the end of the turn. */
#ifndef PYSIDECAR_L7_WIRE_H
#define PYSIDECAR_L7_WIRE_H

#include "l7/buffer.h"
#include "l7/codec.h"
#include "loop/worker.h"
#include "net/channel.h"

struct pipe;
struct wire;

/* What a wire tells its owner, who may close it in any of these. */
struct wire_ops {
    /* In place of `decoded`, where the owner decodes by itself: returns how much is done with. */
    size_t (*take)(struct wire *wire, const uint8_t *data, size_t size);
    /* Before anything is sent: the owner may write more. NULL: it writes as it goes. */
    void (*fill)(struct wire *wire);
    /* A message, or a piece of one. The texts of `message` are valid until this returns. */
    void (*decoded)(struct wire *wire, enum codec_event event, const struct message *message,
                    size_t consumed);
    /* The peer sends nothing more, and all that it sent was decoded. */
    void (*ended)(struct wire *wire);
    /* It was reset, or cannot be written to, with an errno; or ENOMEM. */
    void (*failed)(struct wire *wire, int error);
    /* Something that waited was sent, or can be: see wire_is_behind. */
    void (*sent)(struct wire *wire);
    /* So many bytes of the body were moved to wire->spliced_to, as they are. */
    void (*spliced)(struct wire *wire, size_t bytes);
};

struct wire {
    struct worker *worker;
    struct channel *channel;
    const struct wire_ops *ops;
    const struct codec *codec;
    struct decoder decoder;
    struct encoder encoder;
    struct buffer in, out;
    struct task run;         /* to send, and to read on */
    struct wire *spliced_to; /* the body that is being read goes there by a pipe */
    struct pipe *pipe;       /* NULL: none yet */
    uint64_t read, written;  /* bytes since it was opened */
    uint64_t last_active_ms;
    uint32_t wanted; /* `in` is worth decoding when it holds so much */
    int error;       /* of a write, that the owner has not been told of */
    bool paused;     /* nothing is decoded for now */
    bool broken;     /* nothing can be decoded any more */
    bool running;    /* wire_run is on the stack */
    bool told_end;
    bool closed;
};

/* The channel is open and watched. */
void wire_open(struct wire *wire, struct worker *worker, struct channel *channel,
               const struct codec *codec, const struct wire_ops *ops);
/* Releases what it holds; the channel is the caller's. Once; a closed wire may be closed again. */
void wire_close(struct wire *wire);
/* For channel->changed. */
void wire_changed(struct wire *wire, uint32_t events);
/* The channel takes bytes again: sends on, in this turn or the next. */
void wire_writable(struct wire *wire);
/* Decodes nothing more until wire_resume(). */
void wire_pause(struct wire *wire);
/* Decodes what is there, in this turn or the next. */
void wire_resume(struct wire *wire);

/* Room for `size` bytes behind what waits, for wire_wrote(). NULL when out of memory. */
uint8_t *wire_room(struct wire *wire, size_t size);
void wire_wrote(struct wire *wire, size_t size);
/* The owner has something to write: ops->fill is called at the end of the turn. */
void wire_wants_to_write(struct wire *wire);
/* Sends what waits now, as far as it can be: the wire is about to be closed. */
void wire_flush(struct wire *wire);
/* Sends a part of a body, with what stands before and behind it. Large ones are not copied where
 * they can be sent at once. False when out of memory. */
bool wire_send_body(struct wire *wire, const void *data, size_t size);
/* Tells the owner, later in this turn or in the next, that it has failed: what is in the middle of
 * something can do so. */
void wire_fail(struct wire *wire, int error);
/* Whether so much waits that nothing more should be written until ops->sent. */
bool wire_is_behind(const struct wire *wire);

/* Whether what it brings has to wait. */
bool wire_is_held_back(const struct wire *wire);

/* What is left of the body that is being read goes to the other wire by a pipe, from now on until
 * it ends. Nothing changes where that is not possible, or not worth it. */
void wire_splice_to(struct wire *wire, struct wire *to);
/* The other wire is to be closed: what the pipe still holds is lost. */
void wire_stop_splicing(struct wire *wire);

#endif
