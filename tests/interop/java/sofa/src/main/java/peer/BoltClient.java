package peer;

import com.alipay.remoting.CustomSerializerManager;
import com.alipay.remoting.InvokeCallback;
import com.alipay.remoting.InvokeContext;
import com.alipay.remoting.rpc.RpcClient;
import com.alipay.remoting.rpc.RpcResponseFuture;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executor;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/** Clients of bare SOFABolt: all calls of a protocol to a port go over one connection. */
final class BoltClient {
    private final Map<String, RpcClient> clients = new ConcurrentHashMap<>();
    private final ExecutorService waiting = Executors.newCachedThreadPool();

    BoltClient() {
        CustomSerializerManager.registerCustomSerializer(BoltText.class.getName(), new BoltHeader());
    }

    private static RpcClient started() {
        RpcClient client = new RpcClient();
        client.startup();
        return client;
    }

    CompletableFuture<String> call(Map<String, String> command) throws Exception {
        String protocol = command.getOrDefault("protocol", "1");
        // A connection keeps the protocol with which a client opened it.
        RpcClient client = clients.computeIfAbsent(protocol, unused -> started());
        // The second protocol's second version is the one with a checksum.
        String version = protocol.equals("2") ? "2" : "1";
        String address =
                command.get("address") + "?_PROTOCOL=" + protocol + "&_VERSION=" + version;
        BoltText request =
                new BoltText(
                        command.get("method"),
                        command.get("text"),
                        Integer.parseInt(command.getOrDefault("delay", "0")));
        InvokeContext context = new InvokeContext();
        context.put(BoltHeader.SERVICE, command.getOrDefault("service", ""));
        int timeout = Integer.parseInt(command.getOrDefault("timeout", "10000"));
        switch (command.getOrDefault("kind", "sync")) {
            case "sync":
                return wait(() -> client.invokeSync(address, request, context, timeout));
            case "future":
                RpcResponseFuture future = client.invokeWithFuture(address, request, context, timeout);
                return wait(future::get);
            case "callback":
                Callback callback = new Callback();
                client.invokeWithCallback(address, request, context, callback, timeout);
                return callback.result;
            case "oneway":
                client.oneway(address, request, context);
                return CompletableFuture.completedFuture("sent");
            default:
                throw new IllegalArgumentException(command.get("kind"));
        }
    }

    private interface Blocking {
        Object get() throws Exception;
    }

    private CompletableFuture<String> wait(Blocking blocking) {
        return CompletableFuture.supplyAsync(
                () -> {
                    try {
                        return String.valueOf(blocking.get());
                    } catch (Exception error) {
                        throw new Failure(error);
                    }
                },
                waiting);
    }

    private static final class Callback implements InvokeCallback {
        final CompletableFuture<String> result = new CompletableFuture<>();

        @Override
        public void onResponse(Object value) {
            result.complete(String.valueOf(value));
        }

        @Override
        public void onException(Throwable error) {
            result.completeExceptionally(error);
        }

        @Override
        public Executor getExecutor() {
            return null;
        }
    }
}
