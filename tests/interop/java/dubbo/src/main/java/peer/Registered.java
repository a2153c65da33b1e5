package peer;

import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import org.apache.dubbo.config.ApplicationConfig;
import org.apache.dubbo.config.ProtocolConfig;
import org.apache.dubbo.config.ReferenceConfig;
import org.apache.dubbo.config.RegistryConfig;
import org.apache.dubbo.config.ServiceConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;

/**
 * Dubbo with a registry, provider and consumer, by commands; written for 2.7 and 3 alike.
 *
 * <p>{@code begin}, once and first: {@code application}, {@code registry} (an address with its
 * scheme; "N/A" for none), and for a provider {@code port}, or {@code triple}, the port of that
 * protocol, and perhaps {@code register} (false: it is somebody else's to register it).
 *
 * <p>{@code serve}: {@code name} and {@code services}: "VERSION GROUP", separated by commas; each
 * part may be empty; {@code registry}, where it is another one than that of {@code begin}; {@code
 * protocol}: dubbo, or tri. {@code stop}: takes them back.
 *
 * <p>{@code call}, {@code burst}: {@code service} ("VERSION GROUP"), {@code method}, {@code text},
 * {@code timeout} in ms, {@code delay} in ms, {@code protocol}, where only one will do, and {@code
 * url} (dubbo://HOST:PORT) for one that is not looked for in the registry.
 */
public final class Registered {
    private static final DubboBootstrap BOOTSTRAP = DubboBootstrap.getInstance();
    private static final List<ServiceConfig<Echo>> SERVED = new CopyOnWriteArrayList<>();
    private static final Map<String, ProtocolConfig> PROTOCOLS = new ConcurrentHashMap<>();
    private static final Map<String, Echo> REFERENCES = new ConcurrentHashMap<>();
    private static final ExecutorService WAITING = Executors.newCachedThreadPool();
    private static volatile boolean started;

    private Registered() {}

    public static void main(String[] arguments) throws Exception {
        Calls.commands(Registered::call)
                .on("begin", Registered::begin)
                .on("serve", Registered::serve)
                .on("stop", command -> stop())
                .serve();
    }

    private static Map<String, String> begin(Map<String, String> command) {
        ApplicationConfig application = new ApplicationConfig(command.get("application"));
        application.setQosEnable(false);
        RegistryConfig registry = registry(command);
        registry.setRegister(Boolean.valueOf(command.getOrDefault("register", "true")));
        BOOTSTRAP.application(application).registry(registry);
        if (command.containsKey("port")) {
            listen(application, "dubbo", Integer.parseInt(command.get("port")));
        }
        if (command.containsKey("triple")) {
            listen(application, "tri", Integer.parseInt(command.get("triple")));
        }
        return new HashMap<>();
    }

    private static void listen(ApplicationConfig application, String protocol, int port) {
        application.setMetadataServicePort(port); // else one more of its own
        ProtocolConfig config = new ProtocolConfig(protocol, port);
        PROTOCOLS.put(protocol, config);
        BOOTSTRAP.protocol(config);
    }

    private static RegistryConfig registry(Map<String, String> command) {
        RegistryConfig registry = new RegistryConfig(command.get("registry"));
        registry.setTimeout(10_000);
        return registry;
    }

    private static Map<String, String> serve(Map<String, String> command) {
        for (String text : command.get("services").split(",", -1)) {
            DubboName name = DubboName.parse(text);
            ServiceConfig<Echo> service = new ServiceConfig<>();
            service.setId(text); // else 2.7 takes those of one interface as the same
            service.setInterface(Echo.class);
            service.setVersion(name.version());
            service.setGroup(name.group());
            service.setProtocol(PROTOCOLS.get(command.getOrDefault("protocol", "dubbo")));
            service.setRef(new EchoServer(command.get("name") + "/" + text));
            if (command.containsKey("registry")) {
                service.setRegistry(registry(command));
            }
            SERVED.add(service);
            if (started) { // what comes later is not exported by itself
                service.export();
            } else {
                BOOTSTRAP.service(service);
            }
        }
        BOOTSTRAP.start();
        started = true;
        return new HashMap<>();
    }

    private static Map<String, String> stop() {
        SERVED.forEach(ServiceConfig::unexport);
        SERVED.clear();
        return new HashMap<>();
    }

    private static CompletableFuture<String> call(Map<String, String> command) {
        Echo echo =
                REFERENCES.computeIfAbsent(
                        String.join(
                                "|",
                                command.getOrDefault("service", ""),
                                command.getOrDefault("timeout", ""),
                                command.getOrDefault("protocol", ""),
                                command.getOrDefault("url", "")),
                        unused -> refer(command));
        return CompletableFuture.supplyAsync(() -> Calls.invoke(echo, command), WAITING);
    }

    private static Echo refer(Map<String, String> command) {
        DubboName name = DubboName.parse(command.getOrDefault("service", ""));
        ReferenceConfig<Echo> reference = new ReferenceConfig<>();
        reference.setInterface(Echo.class);
        reference.setVersion(name.version());
        reference.setGroup(name.group());
        reference.setTimeout(Integer.parseInt(command.getOrDefault("timeout", "10000")));
        reference.setRetries(0);
        reference.setCheck(false);
        if (command.containsKey("protocol")) {
            reference.setProtocol(command.get("protocol"));
        }
        if (command.containsKey("url")) {
            reference.setUrl(command.get("url") + "/" + Echo.class.getName());
        }
        return reference.get();
    }
}
