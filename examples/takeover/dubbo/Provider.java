package example;

import org.apache.dubbo.config.ApplicationConfig;
import org.apache.dubbo.config.ProtocolConfig;
import org.apache.dubbo.config.RegistryConfig;
import org.apache.dubbo.config.ServiceConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;

/** Knows nothing of a sidecar: `pysidecar exec` has Dubbo register the sidecar's address. */
public final class Provider {
    private Provider() {}

    public static void main(String[] arguments) throws InterruptedException {
        ApplicationConfig application = new ApplicationConfig("greeter");
        application.setQosEnable(false);
        ServiceConfig<Greeter> service = new ServiceConfig<>();
        service.setInterface(Greeter.class);
        service.setRef(name -> "Hello, " + name);
        DubboBootstrap.getInstance()
                .application(application)
                .registry(new RegistryConfig("zookeeper://" + arguments[0]))
                .protocol(new ProtocolConfig("dubbo", 20880))
                .service(service)
                .start();
        System.out.println("example.Greeter is registered");
        Thread.currentThread().join();
    }
}
