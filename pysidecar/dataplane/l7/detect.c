#include "l7/detect.h"

enum detection detect_protocol(const uint8_t *data, size_t size, enum dp_protocol *protocol)
{
    enum detection result = DETECT_NO;

    for (int which = 0; which < DP_PROTOCOLS; which++) {
        const struct codec *codec = codec_of((enum dp_protocol)which);
        enum detection found = codec ? codec->detect(data, size) : DETECT_NO;

        if (found == DETECT_YES) {
            *protocol = (enum dp_protocol)which;
            return DETECT_YES;
        }
        if (found == DETECT_MORE)
            result = DETECT_MORE;
    }
    return size < DETECT_BYTES ? result : DETECT_NO;
}
