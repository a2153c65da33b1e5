package peer;

import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutionException;

/** Carries what was thrown out of code that may throw nothing. */
public final class Failure extends RuntimeException {
    private static final long serialVersionUID = 1L;

    public Failure(Throwable cause) {
        super(cause);
    }

    /** What was thrown in the first place. */
    public static Throwable origin(Throwable error) {
        boolean wraps =
                error instanceof Failure
                        || error instanceof CompletionException
                        || error instanceof ExecutionException;
        return wraps && error.getCause() != null ? origin(error.getCause()) : error;
    }
}
