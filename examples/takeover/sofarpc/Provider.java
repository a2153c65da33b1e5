package example;

import com.alipay.sofa.rpc.config.ApplicationConfig;
import com.alipay.sofa.rpc.config.ProviderConfig;
import com.alipay.sofa.rpc.config.RegistryConfig;
import com.alipay.sofa.rpc.config.ServerConfig;

/** Listens on loopback, and tells its sidecar what it provides. */
public final class Provider {
    private Provider() {}

    public static void main(String[] arguments) throws InterruptedException {
        new ProviderConfig<Greeter>()
                .setInterfaceId(Greeter.class.getName())
                .setApplication(new ApplicationConfig().setAppName("greeter"))
                .setRef(name -> "Hello, " + name)
                .setServer(
                        new ServerConfig()
                                .setProtocol("bolt")
                                .setBoundHost("127.0.0.1")
                                .setPort(12200))
                // The two lines that are about the sidecar.
                .setRegistry(
                        new RegistryConfig()
                                .setProtocol("mesh")
                                .setAddress("http://127.0.0.1:13330"))
                .export();
        System.out.println("example.Greeter:1.0 is published");
        Thread.currentThread().join();
    }
}
