#include "l7/http2_status.h"

#if __has_include(<nghttp2/nghttp2.h>)
#include <nghttp2/nghttp2.h>
#include <string.h>

static uint32_t status_of(const nghttp2_nv *field)
{
    static const char name[] = ":status";
    uint32_t status = 0;

    if (field->namelen != sizeof name - 1 || memcmp(field->name, name, sizeof name - 1) != 0 ||
        field->valuelen != 3)
        return 0;
    for (size_t i = 0; i < field->valuelen; i++) {
        if (field->value[i] < '0' || field->value[i] > '9')
            return 0;
        status = 10 * status + (uint32_t)(field->value[i] - '0');
    }
    return status;
}

/* It is the first field (RFC 9113, 8.3), so the others are not looked at. What comes before it are
 * sizes of the table. */
uint32_t http2_status(const uint8_t *block, size_t size)
{
    nghttp2_hd_inflater *inflater;
    uint32_t status = 0;
    int flags = 0;
    nghttp2_nv field;

    if (nghttp2_hd_inflate_new(&inflater) != 0)
        return 0;
    if (nghttp2_hd_inflate_hd2(inflater, &field, &flags, block, size, 1) > 0 &&
        flags & NGHTTP2_HD_INFLATE_EMIT)
        status = status_of(&field);
    nghttp2_hd_inflate_del(inflater);
    return status;
}

#else

uint32_t http2_status(const uint8_t *block, size_t size)
{
    (void)block, (void)size;
    return 0;
}

#endif
