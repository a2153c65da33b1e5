package peer;

import com.alipay.sofa.rpc.config.ApplicationConfig;
import com.alipay.sofa.rpc.config.ProviderConfig;
import com.alipay.sofa.rpc.config.ServerConfig;

/** A provider of SOFARPC. */
final class SofaServer {
    private SofaServer() {}

    static void start(int port, String name, String[] uniqueIds) {
        ServerConfig server =
                new ServerConfig().setProtocol("bolt").setBoundHost("127.0.0.1").setPort(port);
        for (String uniqueId : uniqueIds) {
            new ProviderConfig<Echo>()
                    .setInterfaceId(Echo.class.getName())
                    .setApplication(new ApplicationConfig().setAppName("provider"))
                    .setUniqueId(uniqueId)
                    .setRef(new EchoServer(name + "/" + uniqueId))
                    .setServer(server)
                    .setRepeatedExportLimit(-1)
                    .setRegister(false)
                    .export();
        }
    }
}
