package peer;

import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import org.apache.dubbo.config.ApplicationConfig;
import org.apache.dubbo.config.MethodConfig;
import org.apache.dubbo.config.ReferenceConfig;
import org.apache.dubbo.rpc.RpcContext;
import org.apache.dubbo.rpc.model.ApplicationModel;
import org.apache.dubbo.rpc.model.FrameworkModel;

/** A consumer with direct URLs. Dubbo replaces 127.0.0.1 in them, but not [::1]. */
final class DubboClient {
    private final Map<String, Echo> references = new ConcurrentHashMap<>();
    private final ExecutorService waiting = Executors.newCachedThreadPool();
    private final ApplicationModel application = FrameworkModel.defaultModel().newApplication();

    DubboClient() {
        ApplicationConfig config = new ApplicationConfig("consumer");
        config.setQosEnable(false);
        application.getApplicationConfigManager().setApplication(config);
    }

    CompletableFuture<String> call(Map<String, String> command) {
        String kind = command.getOrDefault("kind", "sync");
        Echo echo = reference(command, kind);
        return switch (kind) {
            case "sync" -> CompletableFuture.supplyAsync(() -> Calls.invoke(echo, command), waiting);
            case "future" -> RpcContext.getServiceContext().asyncCall(() -> Calls.invoke(echo, command));
            case "oneway" -> {
                Calls.invoke(echo, command);
                yield CompletableFuture.completedFuture("sent");
            }
            default -> throw new IllegalArgumentException(kind);
        };
    }

    private Echo reference(Map<String, String> command, String kind) {
        String address = command.get("address");
        String service = command.getOrDefault("service", "");
        int timeout = Integer.parseInt(command.getOrDefault("timeout", "10000"));
        return references.computeIfAbsent(
                String.join("|", address, service, kind, String.valueOf(timeout)),
                unused -> refer(address, DubboName.parse(service), kind, timeout));
    }

    private Echo refer(String address, DubboName service, String kind, int timeout) {
        ReferenceConfig<Echo> config = new ReferenceConfig<>();
        config.setScopeModel(application.newModule());
        config.setInterface(Echo.class);
        config.setVersion(service.version());
        config.setGroup(service.group());
        config.setUrl("dubbo://" + address + "/" + Echo.class.getName());
        config.setTimeout(timeout);
        config.setRetries(0);
        config.setCheck(false);
        config.setParameters(Map.of("heartbeat", "1000"));
        if (kind.equals("oneway")) {
            MethodConfig note = new MethodConfig();
            note.setName("note");
            note.setReturn(false);
            config.setMethods(List.of(note));
        }
        return config.get();
    }
}
