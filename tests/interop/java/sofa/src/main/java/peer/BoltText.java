package peer;

import java.io.Serializable;

/** The request of bare SOFABolt; its answer is a string. */
public final class BoltText implements Serializable {
    private static final long serialVersionUID = 1L;

    final String method;
    final String text;
    final int delay;

    BoltText(String method, String text, int delay) {
        this.method = method;
        this.text = text;
        this.delay = delay;
    }
}
