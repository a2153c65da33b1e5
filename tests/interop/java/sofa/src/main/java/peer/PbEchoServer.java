package peer;

import com.google.protobuf.StringValue;

/** Offers a service in Protocol Buffers. */
final class PbEchoServer implements PbEcho {
    private final Echo echo;

    PbEchoServer(Echo echo) {
        this.echo = echo;
    }

    @Override
    public StringValue echo(StringValue text) {
        return StringValue.of(echo.echo(text.getValue()));
    }

    @Override
    public StringValue later(StringValue delayed) {
        String[] words = delayed.getValue().split(" ", 2);
        return StringValue.of(echo.later(words[1], Integer.parseInt(words[0])));
    }

    @Override
    public StringValue fail(StringValue text) {
        try {
            return StringValue.of(echo.fail(text.getValue()));
        } catch (EchoException error) {
            throw new IllegalStateException(error.getMessage());
        }
    }

    @Override
    public StringValue note(StringValue text) {
        echo.note(text.getValue());
        return StringValue.getDefaultInstance();
    }

    @Override
    public StringValue noted(StringValue text) {
        return StringValue.of(String.valueOf(echo.noted(text.getValue())));
    }
}
