package peer;

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;

/**
 * Java's own HTTP client, by commands.
 *
 * <p>{@code call}, {@code burst}: {@code address} (host:port), {@code path}, {@code version}
 * (HTTP_1_1, HTTP_2: asks the server to upgrade), {@code expect} (true: 100-continue), {@code
 * text}: the body, which the server sends back after "NAME ".
 */
public final class Http {
    private static final Map<String, HttpClient> CLIENTS = new ConcurrentHashMap<>();

    private Http() {}

    public static void main(String[] arguments) throws Exception {
        Calls.commands(Http::call).serve();
    }

    private static CompletableFuture<String> call(Map<String, String> command) {
        String version = command.getOrDefault("version", "HTTP_1_1");
        HttpClient client = CLIENTS.computeIfAbsent(version, Http::client);
        URI uri = URI.create("http://" + command.get("address") + command.get("path"));
        HttpRequest request =
                HttpRequest.newBuilder(uri)
                        .POST(BodyPublishers.ofString(command.get("text")))
                        .expectContinue(Boolean.parseBoolean(command.get("expect")))
                        .build();
        return client.sendAsync(request, BodyHandlers.ofString())
                .thenApply(
                        response ->
                                response.statusCode() == 200
                                        ? response.body()
                                        : response.statusCode() + " " + response.body());
    }

    private static HttpClient client(String version) {
        return HttpClient.newBuilder().version(HttpClient.Version.valueOf(version)).build();
    }
}
