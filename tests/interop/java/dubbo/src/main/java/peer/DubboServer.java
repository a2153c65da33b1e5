package peer;

import org.apache.dubbo.config.ApplicationConfig;
import org.apache.dubbo.config.ProtocolConfig;
import org.apache.dubbo.config.RegistryConfig;
import org.apache.dubbo.config.ServiceConfig;
import org.apache.dubbo.rpc.model.ApplicationModel;
import org.apache.dubbo.rpc.model.FrameworkModel;

/** A provider without a registry. */
final class DubboServer {
    private DubboServer() {}

    static void start(int port, String name, String[] services) {
        ApplicationModel application = FrameworkModel.defaultModel().newApplication();
        application.getApplicationConfigManager().setApplication(DubboServer.application(port));
        for (String service : services) {
            DubboName parsed = DubboName.parse(service);
            ServiceConfig<Echo> config = new ServiceConfig<>();
            config.setScopeModel(application.newModule());
            config.setInterface(Echo.class);
            config.setVersion(parsed.version());
            config.setGroup(parsed.group());
            config.setRef(new TracedEcho(name + "/" + service));
            config.setRegistry(new RegistryConfig("N/A"));
            config.setProtocol(protocol(port));
            config.export();
        }
    }

    private static ApplicationConfig application(int port) {
        ApplicationConfig application = new ApplicationConfig("provider");
        application.setQosEnable(false);
        application.setMetadataServicePort(port); // else one of its own, the same for all of us
        return application;
    }

    private static ProtocolConfig protocol(int port) {
        ProtocolConfig protocol = new ProtocolConfig("dubbo", port);
        protocol.setHost("127.0.0.1");
        return protocol;
    }
}
