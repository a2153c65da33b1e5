package peer;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.net.URLDecoder;
import java.net.URLEncoder;
import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.stream.Collectors;

/**
 * Carries out commands from standard input, one a line and all at the same time, each written as an
 * HTML form: {@code id=1&op=call&…}. The answers are lines on standard output, as forms with the
 * command's {@code id}. What else is printed goes to standard error.
 */
public final class Commands {
    /** One kind of command: its values to those of its answer. */
    public interface Handler {
        Map<String, String> handle(Map<String, String> command) throws Exception;
    }

    private final Map<String, Handler> handlers = new LinkedHashMap<>();
    private final PrintStream out = System.out;
    private final ExecutorService threads =
            Executors.newCachedThreadPool(
                    task -> {
                        Thread thread = new Thread(task, "command");
                        thread.setDaemon(true);
                        return thread;
                    });

    public Commands() {
        System.setOut(System.err);
    }

    public Commands on(String op, Handler handler) {
        handlers.put(op, handler);
        return this;
    }

    /** Until standard input ends; then this process does, whatever threads there are. */
    public void serve() throws IOException {
        answer(Map.of("id", "ready"));
        BufferedReader in =
                new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line; (line = in.readLine()) != null; ) {
            Map<String, String> command = decode(line);
            threads.execute(() -> carryOut(command));
        }
        Runtime.getRuntime().halt(0);
    }

    private void carryOut(Map<String, String> command) {
        Map<String, String> answer = new LinkedHashMap<>();
        answer.put("id", command.get("id"));
        try {
            answer.putAll(handlers.get(command.get("op")).handle(command));
        } catch (Throwable error) {
            answer.putAll(describe(error));
        }
        answer(answer);
    }

    /** As an answer's values: its class, its message and, where it has one, its code. */
    static Map<String, String> describe(Throwable thrown) {
        Throwable error = Failure.origin(thrown);
        Map<String, String> values = new LinkedHashMap<>();
        values.put("error", error.getClass().getSimpleName());
        values.put("message", String.valueOf(error.getMessage()));
        for (String getter : new String[] {"getErrorType", "getCode"}) {
            try {
                values.put("code", error.getClass().getMethod(getter).invoke(error).toString());
            } catch (ReflectiveOperationException none) {
                // Most have no such code.
            }
        }
        return values;
    }

    private synchronized void answer(Map<String, String> values) {
        out.println(
                values.entrySet().stream()
                        .map(value -> encode(value.getKey()) + "=" + encode(value.getValue()))
                        .collect(Collectors.joining("&")));
        out.flush();
    }

    private static String encode(String text) {
        return URLEncoder.encode(text, StandardCharsets.UTF_8);
    }

    private static Map<String, String> decode(String form) {
        Map<String, String> values = new LinkedHashMap<>();
        for (String pair : form.split("&")) {
            String[] sides = pair.split("=", 2);
            values.put(
                    URLDecoder.decode(sides[0], StandardCharsets.UTF_8),
                    URLDecoder.decode(sides[1], StandardCharsets.UTF_8));
        }
        return values;
    }
}
