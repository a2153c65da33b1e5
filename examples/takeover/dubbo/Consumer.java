package example;

import org.apache.dubbo.config.ApplicationConfig;
import org.apache.dubbo.config.ReferenceConfig;
import org.apache.dubbo.config.RegistryConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;

/** Sends its calls to its sidecar, which has subscribed the service: see `takeover.subscribe`. */
public final class Consumer {
    private Consumer() {}

    public static void main(String[] names) {
        ApplicationConfig application = new ApplicationConfig("caller");
        application.setQosEnable(false);
        ReferenceConfig<Greeter> reference = new ReferenceConfig<>();
        reference.setInterface(Greeter.class);
        reference.setCheck(false);
        // The line that is about the sidecar, in the place of a registry. (Dubbo connects to no
        // 127.0.0.1.)
        reference.setUrl("dubbo://[::1]:12220");
        DubboBootstrap.getInstance()
                .application(application)
                .registry(new RegistryConfig("N/A"))
                .reference(reference)
                .start();
        Greeter greeter = reference.get();
        for (String name : names) {
            System.out.println(greeter.greet(name));
        }
        System.exit(0);
    }
}
