/* How the head of an HTTP message is passed on, in whichever version: what is meant for one
 * connection only is not, and what a rule changes is changed. */
#ifndef PYSIDECAR_L7_HTTP1_PASSING_H
#define PYSIDECAR_L7_HTTP1_PASSING_H

#include "l7/http1.h"
#include "l7/http1_write.h"

/* How the fields of a message are passed on. */
struct passing {
    const struct message *message;
    const struct rewrite *rewrite;             /* NULL: none */
    const struct trace_fields *trace;          /* NULL: none */
    struct text named[MAX_CONNECTION_OPTIONS]; /* by Connection: meant for us alone */
    uint32_t named_count;
    bool request;    /* it is one */
    bool direct;     /* see struct adjustment */
    bool close;      /* its connection ends */
    bool keep_alive; /* Connection says so */
    bool upgrade;    /* Upgrade is passed on */
    bool trailers;   /* may follow */
    bool takes_trailers, has_length;
};

/* `upgrade`, `trailers`, `close` are to be set afterwards. */
void passing_begin(struct passing *passing, const struct message *message,
                   const struct adjustment *adjustment);
/* Whether the field is passed on. Notes what it says of what is not. */
bool passing_takes(struct passing *passing, const struct field *field);
/* The next field that says of the request's trace what is new, from *at on, which is 0 at the
 * beginning; NULL: there is no more. */
const struct field *passing_next_of_trace(const struct passing *passing, uint32_t *at);
/* Whether a field of that name may come as late as behind the body. */
bool passing_takes_trailer(struct text name);

/* Whether the rewriting, if there is one, is of this path. */
bool passing_rewrites_path(const struct rewrite *rewrite, struct text path);
/* The path with its prefix replaced: with one "/" where both meet, and one at its beginning. */
void passing_put_path(struct writer *writer, struct text path, const struct rewrite *rewrite);
/* What the request says that it is for: host and port. */
struct text passing_host(const struct message *message, const struct adjustment *adjustment);

#endif
