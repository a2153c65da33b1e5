package peer;

import com.alipay.sofa.rpc.api.future.SofaResponseFuture;
import com.alipay.sofa.rpc.config.ConsumerConfig;
import com.alipay.sofa.rpc.config.RegistryConfig;
import com.alipay.sofa.rpc.context.RpcInvokeContext;
import com.alipay.sofa.rpc.core.exception.SofaRpcException;
import com.alipay.sofa.rpc.core.invoke.SofaResponseCallback;
import com.alipay.sofa.rpc.core.request.RequestBase;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/** A consumer of SOFARPC, with direct URLs or a registry. */
final class SofaClient {
    private final Map<String, Echo> consumers = new ConcurrentHashMap<>();
    private final ExecutorService waiting = Executors.newCachedThreadPool();

    CompletableFuture<String> call(Map<String, String> command) {
        String kind = command.getOrDefault("kind", "sync");
        Echo echo = consumer(command, kind);
        return switch (kind) {
            case "sync" -> CompletableFuture.supplyAsync(() -> Calls.invoke(echo, command), waiting);
            case "future" -> future(echo, command);
            case "callback" -> callback(echo, command);
            case "oneway" -> {
                Calls.invoke(echo, command);
                yield CompletableFuture.completedFuture("sent");
            }
            default -> throw new IllegalArgumentException(kind);
        };
    }

    private Echo consumer(Map<String, String> command, String kind) {
        return consumers.computeIfAbsent(
                String.join(
                        " ",
                        command.getOrDefault("address", ""),
                        command.getOrDefault("registry", ""),
                        command.getOrDefault("at", ""),
                        command.getOrDefault("service", ""),
                        command.getOrDefault("serialization", ""),
                        kind,
                        command.getOrDefault("timeout", "")),
                unused -> refer(command, kind));
    }

    private static Echo refer(Map<String, String> command, String kind) {
        boolean protobuf = SofaServer.isProtobuf(command);
        ConsumerConfig<Object> config =
                new ConsumerConfig<>()
                        .setInterfaceId((protobuf ? PbEcho.class : Echo.class).getName())
                        .setApplication(SofaServer.application(command, "consumer"))
                        .setUniqueId(command.getOrDefault("service", ""))
                        .setProtocol("bolt")
                        .setInvokeType(kind)
                        .setSerialization(protobuf ? "protobuf" : "hessian2")
                        .setRepeatedReferLimit(-1)
                        .setReconnectPeriod(500)
                        .setAddressWait(5000)
                        .setTimeout(Integer.parseInt(command.getOrDefault("timeout", "10000")));
        RegistryConfig registry = SofaServer.registry(command);
        if (registry == null) {
            config.setDirectUrl("bolt://" + command.get("address"));
        } else {
            config.setRegistry(registry);
        }
        Object stub = config.refer();
        return protobuf ? new PbEchoClient((PbEcho) stub) : (Echo) stub;
    }

    private CompletableFuture<String> future(Echo echo, Map<String, String> command) {
        Calls.invoke(echo, command);
        Future<?> future = SofaResponseFuture.getFuture(true); // this thread's last call
        return CompletableFuture.supplyAsync(
                () -> {
                    try {
                        return PbEchoClient.text(future.get());
                    } catch (Exception error) {
                        throw new Failure(error);
                    }
                },
                waiting);
    }

    private static CompletableFuture<String> callback(Echo echo, Map<String, String> command) {
        CompletableFuture<String> result = new CompletableFuture<>();
        RpcInvokeContext.getContext()
                .setResponseCallback(
                        new SofaResponseCallback<Object>() {
                            @Override
                            public void onAppResponse(
                                    Object value, String method, RequestBase request) {
                                result.complete(PbEchoClient.text(value));
                            }

                            @Override
                            public void onAppException(
                                    Throwable error, String method, RequestBase request) {
                                result.completeExceptionally(error);
                            }

                            @Override
                            public void onSofaException(
                                    SofaRpcException error, String method, RequestBase request) {
                                result.completeExceptionally(error);
                            }
                        });
        Calls.invoke(echo, command);
        return result;
    }
}
