package peer;

import java.util.HashMap;
import java.util.Map;

/**
 * SOFARPC and bare SOFABolt, client and server, by commands.
 *
 * <p>{@code serve}: {@code library} (sofarpc, bolt), {@code port}, {@code name} and, for SOFARPC,
 * {@code services}: unique ids, separated by commas. {@code stop}: the {@code name} of a SOFARPC.
 *
 * <p>{@code call}, {@code burst}: {@code library}, {@code address} (host:port), {@code service}
 * (SOFARPC: unique id; bolt: the name in the header, which may be empty), {@code kind} (sync,
 * future, callback, oneway), {@code method}, {@code text}, {@code timeout} in ms, {@code delay} in
 * ms; for bolt also {@code protocol} (1, 2).
 *
 * <p>SOFARPC, both sides: {@code registry} (mesh, sofa) with its address as {@code at}, instead of
 * direct URLs; {@code serialization} (hessian2, protobuf); {@code application}, its name.
 */
public final class Sofa {
    private Sofa() {}

    public static void main(String[] arguments) throws Exception {
        SofaClient sofa = new SofaClient();
        BoltClient bolt = new BoltClient();
        Calls.commands(command -> isBolt(command) ? bolt.call(command) : sofa.call(command))
                .on("serve", Sofa::serve)
                .on("stop", SofaServer::stop)
                .on("frames", BoltFrames::frames)
                .on("read", BoltFrames::read)
                .serve();
    }

    private static boolean isBolt(Map<String, String> command) {
        return command.get("library").equals("bolt");
    }

    private static Map<String, String> serve(Map<String, String> command) {
        if (isBolt(command)) {
            BoltServer.start(Integer.parseInt(command.get("port")), command.get("name"));
            return new HashMap<>();
        }
        return SofaServer.start(command);
    }
}
