package peer;

/** What every server here offers. Each answer begins with the name of the server that gave it. */
public interface Echo {
    /** "NAME TEXT". */
    String echo(String text);

    /** The same, after so many milliseconds. */
    String later(String text, int milliseconds);

    /** Always fails, with the text in the message. */
    String fail(String text) throws EchoException;

    /** Remembered; see {@link #noted}. */
    void note(String text);

    /** How often that text was noted. */
    int noted(String text);
}
