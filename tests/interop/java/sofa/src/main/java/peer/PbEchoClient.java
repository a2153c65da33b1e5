package peer;

import com.google.protobuf.StringValue;

/** Calls a service in Protocol Buffers; without an answer, as long as there is none, it is null. */
final class PbEchoClient implements Echo {
    private final PbEcho echo;

    PbEchoClient(PbEcho echo) {
        this.echo = echo;
    }

    /** The text of an answer, whatever its serialization. */
    static String text(Object answer) {
        return answer instanceof StringValue value ? value.getValue() : String.valueOf(answer);
    }

    @Override
    public String echo(String text) {
        return text(echo.echo(StringValue.of(text)));
    }

    @Override
    public String later(String text, int milliseconds) {
        return text(echo.later(StringValue.of(milliseconds + " " + text)));
    }

    @Override
    public String fail(String text) {
        return text(echo.fail(StringValue.of(text)));
    }

    @Override
    public void note(String text) {
        echo.note(StringValue.of(text));
    }

    @Override
    public int noted(String text) {
        return Integer.parseInt(text(echo.noted(StringValue.of(text))));
    }
}
