package example;

import com.alipay.sofa.rpc.config.ApplicationConfig;
import com.alipay.sofa.rpc.config.ConsumerConfig;
import com.alipay.sofa.rpc.config.RegistryConfig;

/** Calls the service through its sidecar, wherever it is provided. */
public final class Consumer {
    private Consumer() {}

    public static void main(String[] names) {
        Greeter greeter =
                new ConsumerConfig<Greeter>()
                        .setInterfaceId(Greeter.class.getName())
                        .setApplication(new ApplicationConfig().setAppName("caller"))
                        .setProtocol("bolt")
                        // The two lines that are about the sidecar.
                        .setRegistry(
                                new RegistryConfig()
                                        .setProtocol("mesh")
                                        .setAddress("http://127.0.0.1:13330"))
                        .refer();
        for (String name : names) {
            System.out.println(greeter.greet(name));
        }
        System.exit(0);
    }
}
