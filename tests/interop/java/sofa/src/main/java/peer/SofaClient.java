package peer;

import com.alipay.sofa.rpc.api.future.SofaResponseFuture;
import com.alipay.sofa.rpc.config.ApplicationConfig;
import com.alipay.sofa.rpc.config.ConsumerConfig;
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

/** A consumer of SOFARPC with direct URLs. */
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
        String address = command.get("address");
        String service = command.getOrDefault("service", "");
        int timeout = Integer.parseInt(command.getOrDefault("timeout", "10000"));
        return consumers.computeIfAbsent(
                String.join(" ", address, service, kind, String.valueOf(timeout)),
                unused ->
                        new ConsumerConfig<Echo>()
                                .setInterfaceId(Echo.class.getName())
                                .setApplication(new ApplicationConfig().setAppName("consumer"))
                                .setUniqueId(service)
                                .setProtocol("bolt")
                                .setInvokeType(kind)
                                .setDirectUrl("bolt://" + address)
                                .setRepeatedReferLimit(-1)
                                .setReconnectPeriod(500)
                                .setTimeout(timeout)
                                .refer());
    }

    private CompletableFuture<String> future(Echo echo, Map<String, String> command) {
        Calls.invoke(echo, command);
        Future<?> future = SofaResponseFuture.getFuture(true); // this thread's last call
        return CompletableFuture.supplyAsync(
                () -> {
                    try {
                        return String.valueOf(future.get());
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
                                result.complete(String.valueOf(value));
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
