#include "l7/trace_context.h"

#include "base/random.h"
#include "l7/bytes.h"

/* The fields that say something of a trace. */
enum trace_name {
    TRACEPARENT,
    TRACESTATE,
    B3,
    B3_TRACE_ID,
    B3_SPAN_ID,
    B3_PARENT_ID,
    B3_SAMPLED,
    B3_FLAGS,
    SOFA_TRACE_ID,
    SOFA_RPC_ID,
    SOFA_SAMPLED,
    TRACE_NAMES,
};

static const struct text names[TRACE_NAMES] = {
    [TRACEPARENT] = TEXT("traceparent"),
    [TRACESTATE] = TEXT("tracestate"),
    [B3] = TEXT("b3"),
    [B3_TRACE_ID] = TEXT("X-B3-TraceId"),
    [B3_SPAN_ID] = TEXT("X-B3-SpanId"),
    [B3_PARENT_ID] = TEXT("X-B3-ParentSpanId"),
    [B3_SAMPLED] = TEXT("X-B3-Sampled"),
    [B3_FLAGS] = TEXT("X-B3-Flags"),
    [SOFA_TRACE_ID] = TEXT("rpc_trace_context.sofaTraceId"),
    [SOFA_RPC_ID] = TEXT("rpc_trace_context.sofaRpcId"),
    [SOFA_SAMPLED] = TEXT("rpc_trace_context.samp"),
};

/* Whether some name has this size: most headers of a request are none of ours. */
#define SIZES (1u << 2 | 1u << 10 | 1u << 11 | 1u << 12 | 1u << 17 | 1u << 22 | 1u << 27 | 1u << 29)

enum {
    ALL_B3 = 1u << B3 | 1u << B3_TRACE_ID | 1u << B3_SPAN_ID | 1u << B3_PARENT_ID |
             1u << B3_SAMPLED | 1u << B3_FLAGS,
    ALL_SOFA = 1u << SOFA_TRACE_ID | 1u << SOFA_RPC_ID | 1u << SOFA_SAMPLED,

    ID_DIGITS = 2 * DP_TRACE_ID_BYTES,
    SPAN_DIGITS = 2 * DP_SPAN_ID_BYTES,

    W3C_SAMPLED = 1,
    W3C_RANDOM = 2, /* level 2: the lower bytes of the trace id are random */
};

/* What the sender says. */
enum decision { UNDECIDED, NOT_SAMPLED, SAMPLED };

struct found {
    struct text values[TRACE_NAMES];       /* at == NULL: it is not there */
    uint32_t twice;                        /* 1 << enum trace_name */
    uint32_t states, members, state_bytes; /* of tracestate */
    enum decision decision;
    uint8_t flags; /* W3C's, but for sampled */
    bool debug;    /* B3's: sampled, and to be stored whatever happens */
    bool derived;  /* the id is SOFATracer's, which is not random */
};

/* ---- reading ---- */

/* TRACE_NAMES: none. */
static enum trace_name name_of(struct text name)
{
    if (name.size >= 32 || !(SIZES >> name.size & 1))
        return TRACE_NAMES;
    for (unsigned i = 0; i < TRACE_NAMES; i++)
        if (text_equal_folded(name, names[i]))
            return (enum trace_name)i;
    return TRACE_NAMES;
}

static uint32_t count_members(struct text list)
{
    uint32_t count = 1;

    for (uint32_t i = 0; i < list.size; i++)
        count += list.at[i] == ',';
    return count;
}

static void note_state(struct found *found, struct text value)
{
    found->states++;
    found->members += count_members(value);
    found->state_bytes += value.size + 1;
}

static void look_for(struct found *found, const struct field *fields, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        enum trace_name name = name_of(fields[i].name);

        if (name == TRACE_NAMES)
            continue;
        if (name == TRACESTATE)
            note_state(found, fields[i].value);
        else if (found->values[name].at)
            found->twice |= 1u << name;
        found->values[name] = fields[i].value;
        if (!found->values[name].at)
            found->values[name].at = "";
    }
}

static int digit_of(char c, bool capitals)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return capitals && c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* False: not so many digits. */
static bool read_digits(const char *at, size_t bytes, bool capitals, uint8_t *to)
{
    for (size_t i = 0; i < bytes; i++) {
        int high = digit_of(at[2 * i], capitals), low = digit_of(at[2 * i + 1], capitals);

        if (high < 0 || low < 0)
            return false;
        to[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

static bool is_zero(const uint8_t *id, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (id[i])
            return false;
    return true;
}

/* A trace and a span that are not zero. */
static bool are_sound(const struct trace_context *context)
{
    return !is_zero(context->id, sizeof context->id) &&
           !is_zero(context->parent, sizeof context->parent);
}

/* version "-" trace-id "-" parent-id "-" flags; of a later version, there may be more behind. */
static bool read_w3c(struct found *found, struct trace_context *context)
{
    struct text value = found->values[TRACEPARENT];
    uint8_t version, flags;

    if (value.size < 55 || found->twice & 1u << TRACEPARENT ||
        !read_digits(value.at, 1, false, &version) || version == 0xff || value.at[2] != '-' ||
        value.at[35] != '-' || value.at[52] != '-' ||
        !read_digits(value.at + 3, sizeof context->id, false, context->id) ||
        !read_digits(value.at + 36, sizeof context->parent, false, context->parent) ||
        !read_digits(value.at + 53, 1, false, &flags) || !are_sound(context))
        return false;
    if (value.size > 55 && (version == 0 || value.at[55] != '-'))
        return false;
    found->decision = flags & W3C_SAMPLED ? SAMPLED : NOT_SAMPLED;
    found->flags = flags & W3C_RANDOM;
    return true;
}

/* Of 16 or 32 digits. */
static bool read_b3_id(struct text value, struct trace_context *context)
{
    memset(context->id, 0, sizeof context->id);
    if (value.size == ID_DIGITS)
        return read_digits(value.at, sizeof context->id, true, context->id);
    return value.size == SPAN_DIGITS &&
           read_digits(value.at, DP_SPAN_ID_BYTES, true,
                       context->id + DP_TRACE_ID_BYTES - DP_SPAN_ID_BYTES);
}

static bool read_b3_span(struct text value, struct trace_context *context)
{
    return value.size == SPAN_DIGITS &&
           read_digits(value.at, sizeof context->parent, true, context->parent);
}

static bool read_b3_decision(struct text value, enum decision *decision, bool *debug)
{
    *debug = text_equal(value, TEXT("d"));
    *decision = UNDECIDED;
    if (*debug || text_equal(value, TEXT("1")) || text_equal_folded(value, TEXT("true")))
        *decision = SAMPLED;
    else if (text_equal(value, TEXT("0")) || text_equal_folded(value, TEXT("false")))
        *decision = NOT_SAMPLED;
    return value.size == 0 || *decision != UNDECIDED;
}

/* Takes what stands before the next "-". */
static struct text next_part(struct text *rest)
{
    const char *dash = rest->size > 0 ? memchr(rest->at, '-', rest->size) : NULL;
    struct text part = {rest->at, dash ? (uint32_t)(dash - rest->at) : rest->size};
    uint32_t used = part.size + (dash != NULL);

    *rest = (struct text){rest->at + used, rest->size - used};
    return part;
}

static bool is_b3_span(struct text value)
{
    uint8_t ignored[DP_SPAN_ID_BYTES];

    return value.size == SPAN_DIGITS && read_digits(value.at, sizeof ignored, true, ignored);
}

/* id "-" span ["-" decision ["-" parent]], or a decision alone. */
static bool read_b3_single(struct found *found, struct trace_context *context)
{
    struct text rest = found->values[B3], first = next_part(&rest), parent;
    enum decision decision;
    bool debug, alone = first.size == found->values[B3].size;

    if (!alone && (rest.size == 0 || rest.at[rest.size - 1] == '-'))
        return false;
    if (!alone && (!read_b3_id(first, context) || !read_b3_span(next_part(&rest), context) ||
                   !are_sound(context)))
        return false;
    if (!read_b3_decision(alone ? first : next_part(&rest), &decision, &debug))
        return false;
    parent = next_part(&rest);
    if (rest.size > 0 || (parent.size > 0 && !is_b3_span(parent)))
        return false;
    found->decision = decision;
    found->debug = debug;
    return !alone;
}

/* Likewise. */
static bool read_b3_multi(struct found *found, struct trace_context *context)
{
    bool alone = !found->values[B3_TRACE_ID].at && !found->values[B3_SPAN_ID].at;
    struct text flags = found->values[B3_FLAGS];
    enum decision decision;
    bool debug;

    if (!alone && (!read_b3_id(found->values[B3_TRACE_ID], context) ||
                   !read_b3_span(found->values[B3_SPAN_ID], context) || !are_sound(context)))
        return false;
    if (!read_b3_decision(text_equal(flags, TEXT("1")) ? TEXT("d") : found->values[B3_SAMPLED],
                          &decision, &debug))
        return false;
    found->decision = decision;
    found->debug = debug;
    return !alone;
}

/* One header counts more than several, as in the specification. */
static bool read_b3(struct found *found, struct trace_context *context)
{
    if (found->twice & ALL_B3)
        return false;
    return found->values[B3].at ? read_b3_single(found, context) : read_b3_multi(found, context);
}

/* Up to 32 hexadecimal digits, as SOFATracer writes them: the address of who began it, the time, a
 * number and its process. They are the last ones of the id, so that people find it. Its spans are
 * named by where they are in a tree, and are in nobody's collector. SOFATracer says "sampled" of
 * everything unless it is told otherwise, so that this decides nothing. */
static bool read_sofa(struct found *found, struct trace_context *context)
{
    struct text value = found->values[SOFA_TRACE_ID];
    char digits[ID_DIGITS];

    if (value.size == 0 || value.size > ID_DIGITS || found->twice & 1u << SOFA_TRACE_ID)
        return false;
    memset(digits, '0', sizeof digits);
    memcpy(digits + sizeof digits - value.size, value.at, value.size);
    if (!read_digits(digits, sizeof context->id, true, context->id) ||
        is_zero(context->id, sizeof context->id))
        return false;
    memset(context->parent, 0, sizeof context->parent);
    if (text_equal(found->values[SOFA_SAMPLED], TEXT("false")))
        found->decision = NOT_SAMPLED;
    found->derived = true;
    return true;
}

static bool read_form(enum dp_trace_form form, enum dp_protocol protocol, struct found *found,
                      struct trace_context *context)
{
    switch (form) {
    case DP_TRACE_W3C:
        return found->values[TRACEPARENT].at && read_w3c(found, context);
    case DP_TRACE_B3:
    case DP_TRACE_B3_MULTI:
        return read_b3(found, context);
    case DP_TRACE_SOFA:
        return protocol == DP_BOLT && read_sofa(found, context);
    }
    return false;
}

/* ---- deciding ---- */

static void make_id(uint8_t *id, size_t size, uint64_t *random)
{
    for (size_t i = 0; i < size; i += sizeof(uint64_t)) {
        uint64_t part;

        do
            part = random_next(random);
        while (part == 0);
        write_u64(id + i, part);
    }
}

/* As TraceIdRatioBased of OpenTelemetry's SDKs. */
static bool is_below(const struct trace_policy *policy, const struct found *found,
                     const struct trace_context *context)
{
    uint64_t number = read_u64(context->id + DP_TRACE_ID_BYTES - sizeof number);

    if (found->derived)
        number = random_mix(number ^ random_mix(read_u64(context->id)));
    return policy->all || number < policy->bound;
}

/* ---- writing ---- */

static char *put_digits(char *to, const uint8_t *id, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        *to++ = "0123456789abcdef"[id[i] >> 4];
        *to++ = "0123456789abcdef"[id[i] & 15];
    }
    return to;
}

struct writer {
    struct trace_fields *fields;
    const struct trace_context *context;
    const struct found *found;
    char *at; /* in the text */
};

/* What was written since `from` is the value. */
static void set(struct writer *writer, enum trace_name name, const char *from)
{
    writer->fields->set[writer->fields->count++] =
        (struct field){names[name], {from, (uint32_t)(writer->at - from)}};
}

static void set_text(struct writer *writer, enum trace_name name, struct text text)
{
    writer->fields->set[writer->fields->count++] = (struct field){names[name], text};
}

static void write_w3c(struct writer *writer)
{
    const struct trace_context *context = writer->context;
    const char *from = writer->at;
    uint8_t flags = writer->found->flags | (context->sampled ? W3C_SAMPLED : 0);
    const struct found *found = writer->found;

    memcpy(writer->at, "00-", 3);
    writer->at = put_digits(writer->at + 3, context->id, sizeof context->id);
    *writer->at++ = '-';
    writer->at = put_digits(writer->at, context->span, sizeof context->span);
    *writer->at++ = '-';
    writer->at = put_digits(writer->at, &flags, 1);
    set(writer, TRACEPARENT, from);
    writer->fields->replaced |= 1u << TRACEPARENT;
    if (found->members > MOST_STATE_MEMBERS || found->state_bytes > MOST_TRACE_STATE)
        writer->fields->replaced |= 1u << TRACESTATE;
}

/* One of 64 bits stays that. */
static char *put_b3_id(char *to, const struct trace_context *context)
{
    size_t skipped = is_zero(context->id, DP_TRACE_ID_BYTES - DP_SPAN_ID_BYTES)
                         ? DP_TRACE_ID_BYTES - DP_SPAN_ID_BYTES
                         : 0;

    return put_digits(to, context->id + skipped, sizeof context->id - skipped);
}

static void write_b3_single(struct writer *writer)
{
    const struct trace_context *context = writer->context;
    const char *from = writer->at;

    writer->at = put_b3_id(writer->at, context);
    *writer->at++ = '-';
    writer->at = put_digits(writer->at, context->span, sizeof context->span);
    *writer->at++ = '-';
    *writer->at++ = writer->found->debug ? 'd' : context->sampled ? '1' : '0';
    if (!is_zero(context->parent, sizeof context->parent)) {
        *writer->at++ = '-';
        writer->at = put_digits(writer->at, context->parent, sizeof context->parent);
    }
    set(writer, B3, from);
}

static void write_b3_multi(struct writer *writer)
{
    const struct trace_context *context = writer->context;
    const char *from = writer->at;

    writer->at = put_b3_id(writer->at, context);
    set(writer, B3_TRACE_ID, from);
    from = writer->at;
    writer->at = put_digits(writer->at, context->span, sizeof context->span);
    set(writer, B3_SPAN_ID, from);
    if (!is_zero(context->parent, sizeof context->parent)) {
        from = writer->at;
        writer->at = put_digits(writer->at, context->parent, sizeof context->parent);
        set(writer, B3_PARENT_ID, from);
    }
    if (writer->found->debug)
        set_text(writer, B3_FLAGS, TEXT("1"));
    else
        set_text(writer, B3_SAMPLED, context->sampled ? TEXT("1") : TEXT("0"));
}

/* SOFATracer's own, where there is one, goes on as it is: its spans are not ours. */
static void write_sofa(struct writer *writer)
{
    const struct trace_context *context = writer->context;
    const char *from = writer->at;

    if (writer->found->values[SOFA_TRACE_ID].size > 0)
        return;
    writer->at = put_digits(writer->at, context->id, sizeof context->id);
    set(writer, SOFA_TRACE_ID, from);
    set_text(writer, SOFA_RPC_ID, TEXT("0"));
    set_text(writer, SOFA_SAMPLED, context->sampled ? TEXT("true") : TEXT("false"));
    writer->fields->replaced |= ALL_SOFA;
}

static bool has_form(const struct trace_policy *policy, enum dp_trace_form form)
{
    for (unsigned i = 0; i < DP_TRACE_FORMS; i++)
        if (policy->forms[i] == form)
            return true;
    return false;
}

/* In the form of the policy, and in those in which it came. */
static void write_b3(struct writer *writer, const struct trace_policy *policy)
{
    const struct text *values = writer->found->values;
    bool single = has_form(policy, DP_TRACE_B3), multi = has_form(policy, DP_TRACE_B3_MULTI);

    if (!single && !multi)
        return;
    if (single || values[B3].at)
        write_b3_single(writer);
    if (multi || values[B3_TRACE_ID].at)
        write_b3_multi(writer);
    writer->fields->replaced |= ALL_B3;
}

static void write_all(const struct trace_policy *policy, enum dp_protocol protocol,
                      const struct found *found, struct trace_context *context)
{
    struct writer writer = {&context->fields, context, found, context->fields.text};

    if (has_form(policy, DP_TRACE_W3C))
        write_w3c(&writer);
    write_b3(&writer, policy);
    if (protocol == DP_BOLT && has_form(policy, DP_TRACE_SOFA))
        write_sofa(&writer);
    context->written = true;
}

/* ---- all of it ---- */

static bool read_any(const struct trace_policy *policy, enum dp_protocol protocol,
                     struct found *found, struct trace_context *context)
{
    for (unsigned i = 0; i < DP_TRACE_FORMS && policy->forms[i]; i++)
        if (read_form((enum dp_trace_form)policy->forms[i], protocol, found, context))
            return true;
    return false;
}

/* A new trace, which has no state of others. */
static void start(const struct trace_policy *policy, struct found *found, uint64_t *random,
                  struct trace_context *context)
{
    make_id(context->id, sizeof context->id, random);
    memset(context->parent, 0, sizeof context->parent);
    found->derived = false;
    context->fields.replaced |= has_form(policy, DP_TRACE_W3C) ? 1u << TRACESTATE : 0;
}

void trace_context_of(const struct trace_policy *policy, enum dp_protocol protocol,
                      const struct field *fields, uint32_t count, uint64_t *random,
                      struct trace_context *context)
{
    struct found found = {.twice = 0};
    bool joined;

    context->known = context->sampled = context->written = false;
    memset(context->span, 0, sizeof context->span);
    context->fields.count = context->fields.replaced = 0;
    look_for(&found, fields, count);
    joined = read_any(policy, protocol, &found, context);
    if (!joined) {
        if (found.decision == NOT_SAMPLED || (!policy->starts && found.decision != SAMPLED))
            return;
        start(policy, &found, random, context);
    }
    context->known = true;
    context->sampled = found.decision == SAMPLED ||
                       (found.decision == UNDECIDED && is_below(policy, &found, context));
    if (joined && !context->sampled)
        return;
    make_id(context->span, sizeof context->span, random);
    write_all(policy, protocol, &found, context);
}

bool trace_fields_replace(const struct trace_fields *fields, struct text name)
{
    enum trace_name which;

    if (!fields || fields->replaced == 0)
        return false;
    which = name_of(name);
    return which != TRACE_NAMES && fields->replaced >> which & 1;
}

size_t trace_fields_size(const struct trace_fields *fields, size_t around)
{
    size_t size = 0;

    for (uint32_t i = 0; i < fields->count; i++)
        size += fields->set[i].name.size + fields->set[i].value.size + around;
    return size;
}

size_t trace_state(const struct field *fields, uint32_t count, char *to, size_t room)
{
    uint32_t members = 0;
    size_t size = 0;

    for (uint32_t i = 0; i < count; i++) {
        struct text value = fields[i].value;

        if (!text_equal_folded(fields[i].name, names[TRACESTATE]) || value.size == 0)
            continue;
        members += count_members(value);
        if (members > MOST_STATE_MEMBERS || size + (size > 0) + value.size > room)
            return 0;
        if (size > 0)
            to[size++] = ',';
        memcpy(to + size, value.at, value.size);
        size += value.size;
    }
    return size;
}
