package peer;

import com.alipay.sofa.rpc.config.ApplicationConfig;
import com.alipay.sofa.rpc.config.ProviderConfig;
import com.alipay.sofa.rpc.config.RegistryConfig;
import com.alipay.sofa.rpc.config.ServerConfig;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CopyOnWriteArrayList;

/** A provider of SOFARPC. */
final class SofaServer {
    private static final Map<String, List<ProviderConfig<?>>> EXPORTED = new ConcurrentHashMap<>();

    private SofaServer() {}

    static Map<String, String> start(Map<String, String> command) {
        ServerConfig server =
                new ServerConfig()
                        .setProtocol("bolt")
                        .setBoundHost(command.getOrDefault("host", "127.0.0.1"))
                        .setPort(Integer.parseInt(command.get("port")));
        String name = command.get("name");
        for (String uniqueId : command.get("services").split(",", -1)) {
            export(command, server, uniqueId, new TracedEcho(name + "/" + uniqueId));
        }
        return new HashMap<>();
    }

    private static void export(
            Map<String, String> command, ServerConfig server, String uniqueId, Echo echo) {
        boolean protobuf = isProtobuf(command);
        ProviderConfig<Object> provider =
                new ProviderConfig<>()
                        .setInterfaceId((protobuf ? PbEcho.class : Echo.class).getName())
                        .setApplication(application(command, "provider"))
                        .setUniqueId(uniqueId)
                        .setRef(protobuf ? new PbEchoServer(echo) : echo)
                        .setServer(server)
                        .setRepeatedExportLimit(-1)
                        .setSerialization(protobuf ? "protobuf" : "hessian2");
        RegistryConfig registry = registry(command);
        if (registry == null) {
            provider.setRegister(false);
        } else {
            provider.setRegistry(registry);
        }
        provider.export();
        EXPORTED.computeIfAbsent(command.get("name"), unused -> new CopyOnWriteArrayList<>())
                .add(provider);
    }

    /** Takes back all that a name provides, in the order of the library. */
    static Map<String, String> stop(Map<String, String> command) {
        for (ProviderConfig<?> provider : EXPORTED.remove(command.get("name"))) {
            provider.unExport();
        }
        return new HashMap<>();
    }

    static boolean isProtobuf(Map<String, String> command) {
        return command.getOrDefault("serialization", "hessian2").equals("protobuf");
    }

    static ApplicationConfig application(Map<String, String> command, String otherwise) {
        return new ApplicationConfig().setAppName(command.getOrDefault("application", otherwise));
    }

    /** Null where there is none. */
    static RegistryConfig registry(Map<String, String> command) {
        String kind = command.getOrDefault("registry", "");
        return kind.isEmpty()
                ? null
                : new RegistryConfig().setProtocol(kind).setAddress(command.get("at"));
    }
}
