package peer;

import com.alipay.remoting.BizContext;
import com.alipay.remoting.rpc.RpcServer;
import com.alipay.remoting.rpc.protocol.SyncUserProcessor;
import java.util.Map;

/** A server of bare SOFABolt. */
final class BoltServer extends SyncUserProcessor<BoltText> {
    private final EchoServer echo;

    private BoltServer(String name) {
        this.echo = new EchoServer(name);
    }

    static void start(int port, String name) {
        RpcServer server = new RpcServer("127.0.0.1", port);
        server.registerUserProcessor(new BoltServer(name));
        server.startup();
    }

    @Override
    public Object handleRequest(BizContext context, BoltText request) {
        return Calls.invoke(
                echo,
                Map.of(
                        "method", request.method,
                        "text", request.text,
                        "delay", String.valueOf(request.delay)));
    }

    @Override
    public String interest() {
        return BoltText.class.getName();
    }
}
