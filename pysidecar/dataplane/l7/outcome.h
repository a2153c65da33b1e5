/* What an attempt at a request says about the endpoint that it was made at. */
#ifndef PYSIDECAR_L7_OUTCOME_H
#define PYSIDECAR_L7_OUTCOME_H

#include "l7/stream.h"

/* The endpoint that is tried has answered, or failed to: `failed`: by its fault. Once for each
 * attempt, but for an answer that is cut off, which fails after all. */
void outcome_note(struct stream *stream, bool failed);

/* Notes a failure, if there is an endpoint whose fault this is. */
void outcome_note_failure(struct stream *stream, enum dp_flag why);

#endif
