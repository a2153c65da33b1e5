package peer;

import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Semaphore;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicInteger;

/** The commands that every client here understands, over one asynchronous call. */
public final class Calls {
    private static final int PATIENCE_S = 30;

    /** Begins a call as a command asks: {@code method} with {@code text} and, maybe, a delay. */
    public interface Client {
        CompletableFuture<String> call(Map<String, String> command) throws Exception;
    }

    private static volatile Map<String, AtomicInteger> progress = Map.of();

    private Calls() {}

    public static Commands commands(Client client) {
        return new Commands()
                .on("call", command -> call(client, command))
                .on("burst", command -> burst(client, command))
                .on("progress", command -> numbers(progress));
    }

    /** Carries out a call on the service itself, or on a stub of it. */
    public static String invoke(Echo echo, Map<String, String> command) {
        String text = command.get("text");
        try {
            switch (command.get("method")) {
                case "echo":
                    return echo.echo(text);
                case "later":
                    return echo.later(text, Integer.parseInt(command.get("delay")));
                case "fail":
                    return echo.fail(text);
                case "noted":
                    return String.valueOf(echo.noted(text));
                case "note":
                    echo.note(text);
                    return "";
                default:
                    throw new IllegalArgumentException(command.get("method"));
            }
        } catch (EchoException error) {
            throw new Failure(error);
        }
    }

    private static Map<String, String> call(Client client, Map<String, String> command)
            throws Exception {
        long start = System.nanoTime();
        Map<String, String> answer = new LinkedHashMap<>();
        try {
            String value = client.call(command).get(PATIENCE_S, TimeUnit.SECONDS);
            answer.put("value", String.valueOf(value));
        } catch (Exception error) {
            answer.putAll(Commands.describe(error));
        }
        answer.put("ms", String.valueOf((System.nanoTime() - start) / 1_000_000));
        return answer;
    }

    /**
     * {@code count} calls with {@code concurrency} of them under way, each with a text of its own
     * of {@code size} characters and a delay of up to {@code jitter} ms at the server: how many
     * were answered ("right"), how many by another's answer ("wrong"), and how often there was
     * which error ("error CLASS") or no answer at all ("silent"). {@code progress} tells the same of
     * the burst that began last, so far.
     */
    private static Map<String, String> burst(Client client, Map<String, String> command)
            throws Exception {
        int count = Integer.parseInt(command.get("count"));
        int size = Integer.parseInt(command.getOrDefault("size", "0"));
        int jitter = Integer.parseInt(command.getOrDefault("jitter", "0"));
        int concurrency = Integer.parseInt(command.getOrDefault("concurrency", "1"));
        Map<String, AtomicInteger> results = new ConcurrentHashMap<>();
        progress = results;
        Semaphore free = new Semaphore(concurrency);
        for (int i = 0; i < count; i++) {
            if (!free.tryAcquire(PATIENCE_S, TimeUnit.SECONDS)) {
                count(results, "silent");
                continue;
            }
            Map<String, String> one = new LinkedHashMap<>(command);
            String text = text(command.get("id") + "-" + i, size);
            one.put("text", text);
            one.put("method", jitter > 0 ? "later" : "echo");
            one.put("delay", String.valueOf(ThreadLocalRandom.current().nextInt(jitter + 1)));
            begin(client, one)
                    .orTimeout(PATIENCE_S, TimeUnit.SECONDS)
                    .whenComplete(
                            (value, error) -> {
                                count(results, judge(text, value, error));
                                free.release();
                            });
        }
        if (!free.tryAcquire(concurrency, PATIENCE_S + 1L, TimeUnit.SECONDS)) {
            count(results, "silent");
        }
        return numbers(results);
    }

    private static Map<String, String> numbers(Map<String, AtomicInteger> results) {
        Map<String, String> answer = new LinkedHashMap<>();
        results.forEach((name, number) -> answer.put(name, number.toString()));
        return answer;
    }

    private static CompletableFuture<String> begin(Client client, Map<String, String> command) {
        try {
            return client.call(command);
        } catch (Exception error) {
            return CompletableFuture.failedFuture(error);
        }
    }

    private static String judge(String text, String value, Throwable error) {
        if (error instanceof TimeoutException) {
            return "silent";
        }
        if (error != null) {
            return "error " + Failure.origin(error).getClass().getSimpleName();
        }
        return value != null && value.endsWith(" " + text) ? "right" : "wrong";
    }

    private static void count(Map<String, AtomicInteger> results, String name) {
        results.computeIfAbsent(name, unused -> new AtomicInteger()).incrementAndGet();
    }

    private static String text(String name, int size) {
        StringBuilder text = new StringBuilder(name);
        while (text.length() < size) {
            text.append('.').append(ThreadLocalRandom.current().nextInt());
        }
        return text.toString();
    }
}
