package peer;

import java.util.HashMap;
import java.util.Map;

/**
 * Dubbo, provider and consumer, by commands.
 *
 * <p>{@code serve}: {@code port}, {@code name} and {@code services}: "VERSION GROUP", separated by
 * commas; each part may be empty.
 *
 * <p>{@code call}, {@code burst}: {@code address} (host:port), {@code service} ("VERSION GROUP"),
 * {@code kind} (sync, future, oneway), {@code method}, {@code text}, {@code timeout} in ms, {@code
 * delay} in ms.
 */
public final class Dubbo {
    private Dubbo() {}

    public static void main(String[] arguments) throws Exception {
        Calls.commands(new DubboClient()::call)
                .on("serve", Dubbo::serve)
                .on("values", DubboFrames::values)
                .on("skips", DubboFrames::skips)
                .on("requests", DubboFrames::requests)
                .on("responses", DubboFrames::responses)
                .on("read", DubboFrames::read)
                .serve();
    }

    private static Map<String, String> serve(Map<String, String> command) {
        DubboServer.start(
                Integer.parseInt(command.get("port")),
                command.get("name"),
                command.get("services").split(","));
        return new HashMap<>();
    }
}
