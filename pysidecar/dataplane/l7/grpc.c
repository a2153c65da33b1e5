#include "l7/grpc.h"

enum status {
    OK = 0,
    CANCELLED = 1,
    UNKNOWN = GRPC_UNKNOWN,
    INVALID_ARGUMENT = 3,
    DEADLINE_EXCEEDED = 4,
    NOT_FOUND = 5,
    ALREADY_EXISTS = 6,
    PERMISSION_DENIED = 7,
    RESOURCE_EXHAUSTED = 8,
    FAILED_PRECONDITION = 9,
    OUT_OF_RANGE = 11,
    UNIMPLEMENTED = 12,
    INTERNAL = 13,
    UNAVAILABLE = 14,
    UNAUTHENTICATED = 16,
};

bool grpc_is_type(struct text content_type)
{
    static const struct text name = TEXT("application/grpc");
    struct text begin = {content_type.at, name.size};

    if (content_type.size < name.size || !text_equal_folded(begin, name))
        return false;
    return content_type.size == name.size || content_type.at[name.size] == '+' ||
           content_type.at[name.size] == ';';
}

/* Nanoseconds in a unit; 0: there is no such unit. */
static uint64_t unit_ns(char unit)
{
    switch (unit) {
    case 'H':
        return UINT64_C(3600000000000);
    case 'M':
        return UINT64_C(60000000000);
    case 'S':
        return UINT64_C(1000000000);
    case 'm':
        return UINT64_C(1000000);
    case 'u':
        return UINT64_C(1000);
    case 'n':
        return 1;
    default:
        return 0;
    }
}

uint32_t grpc_timeout_ms(struct text value)
{
    uint64_t number = 0, ns, ms;

    if (value.size < 2 || value.size > 9)
        return 0;
    for (uint32_t i = 0; i < value.size - 1; i++) {
        if (value.at[i] < '0' || value.at[i] > '9')
            return 0;
        number = number * 10 + (uint64_t)(value.at[i] - '0');
    }
    ns = unit_ns(value.at[value.size - 1]);
    if (ns == 0)
        return 0;
    /* 99,999,999 hours are 3.6e20 ns. */
    ms = ns >= 1000000 ? number * (ns / 1000000) : (number * ns + 999999) / 1000000;
    if (ms == 0)
        return 1;
    return ms > INT32_MAX ? INT32_MAX : (uint32_t)ms;
}

uint8_t grpc_status_of(struct text value)
{
    uint32_t number = 0;

    if (value.size == 0 || value.size > 3)
        return UNKNOWN;
    for (uint32_t i = 0; i < value.size; i++) {
        if (value.at[i] < '0' || value.at[i] > '9')
            return UNKNOWN;
        number = number * 10 + (uint32_t)(value.at[i] - '0');
    }
    return number < GRPC_STATUSES ? (uint8_t)number : UNKNOWN;
}

uint8_t grpc_status_for_http(uint32_t status)
{
    switch (status) {
    case 400:
        return INTERNAL;
    case 401:
        return UNAUTHENTICATED;
    case 403:
        return PERMISSION_DENIED;
    case 404:
        return UNIMPLEMENTED;
    case 429:
    case 502:
    case 503:
    case 504:
        return UNAVAILABLE;
    default:
        return UNKNOWN;
    }
}

uint8_t grpc_status_for(const struct rejection *rejection)
{
    switch (rejection->flag) {
    case DP_FLAG_FAULT_ABORT:
        return grpc_status_for_http(rejection->http_status);
    case DP_FLAG_NO_ROUTE:
    case DP_FLAG_REFUSED:
        return UNIMPLEMENTED;
    case DP_FLAG_TIMEOUT:
        return DEADLINE_EXCEEDED;
    case DP_FLAG_OVERLOAD:
    case DP_FLAG_RATE_LIMITED:
        return RESOURCE_EXHAUSTED;
    case DP_FLAG_MALFORMED_REQUEST:
    case DP_FLAG_MALFORMED_RESPONSE:
    case DP_FLAG_LOOP:
        return INTERNAL;
    default:
        return UNAVAILABLE;
    }
}

uint8_t grpc_class_of(uint8_t status)
{
    switch (status) {
    case OK:
        return 2;
    case CANCELLED:
    case INVALID_ARGUMENT:
    case NOT_FOUND:
    case ALREADY_EXISTS:
    case PERMISSION_DENIED:
    case FAILED_PRECONDITION:
    case OUT_OF_RANGE:
    case UNAUTHENTICATED:
        return 4;
    default:
        return 5;
    }
}

bool grpc_split_path(struct text path, struct text *service, struct text *method)
{
    const char *end = path.at + path.size, *slash = NULL;

    if (path.size < 4 || path.at[0] != '/')
        return false;
    for (const char *at = path.at + 1; at < end; at++)
        if (*at == '/')
            slash = at;
    if (!slash || slash == path.at + 1 || slash + 1 == end)
        return false;
    *service = (struct text){path.at + 1, (uint32_t)(slash - path.at - 1)};
    *method = (struct text){slash + 1, (uint32_t)(end - slash - 1)};
    return true;
}
