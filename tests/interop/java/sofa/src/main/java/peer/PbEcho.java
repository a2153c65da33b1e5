package peer;

import com.google.protobuf.StringValue;

/** {@link Echo} as SOFARPC serves it in Protocol Buffers: one message in, one out. */
public interface PbEcho {
    /** "NAME TEXT". */
    StringValue echo(StringValue text);

    /** "MILLISECONDS TEXT", answered after so many. */
    StringValue later(StringValue delayed);

    /** Always fails, with the text in the message. */
    StringValue fail(StringValue text);

    /** Remembered; see {@link #noted}. */
    StringValue note(StringValue text);

    /** How often that text was noted. */
    StringValue noted(StringValue text);
}
