package peer;

import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;

/** The service itself, whatever brings the calls. */
public class EchoServer implements Echo {
    private final String name;
    private final Map<String, Integer> notes = new ConcurrentHashMap<>();

    public EchoServer(String name) {
        this.name = name;
    }

    @Override
    public String echo(String text) {
        return name + " " + text;
    }

    @Override
    public String later(String text, int milliseconds) {
        try {
            Thread.sleep(milliseconds);
        } catch (InterruptedException error) {
            throw new IllegalStateException(error);
        }
        return echo(text);
    }

    @Override
    public String fail(String text) throws EchoException {
        throw new EchoException(echo(text));
    }

    @Override
    public void note(String text) {
        notes.merge(text, 1, Integer::sum);
    }

    @Override
    public int noted(String text) {
        return notes.getOrDefault(text, 0);
    }
}
