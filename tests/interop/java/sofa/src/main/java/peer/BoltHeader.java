package peer;

import com.alipay.remoting.DefaultCustomSerializer;
import com.alipay.remoting.InvokeContext;
import com.alipay.remoting.rpc.RequestCommand;
import com.alipay.remoting.rpc.protocol.RpcRequestCommand;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;

/** Writes the service's name into the header section, as a sidecar reads it. */
final class BoltHeader extends DefaultCustomSerializer {
    static final String SERVICE = "peer.service";

    @Override
    public <T extends RequestCommand> boolean serializeHeader(T request, InvokeContext context) {
        String service = context == null ? null : context.get(SERVICE);
        if (service == null || service.isEmpty()) {
            return false;
        }
        ((RpcRequestCommand) request).setHeader(pair("service", service));
        return true;
    }

    @Override
    public <T extends RequestCommand> boolean deserializeHeader(T request) {
        return true;
    }

    private static byte[] pair(String key, String value) {
        byte[] keyBytes = key.getBytes(StandardCharsets.UTF_8);
        byte[] valueBytes = value.getBytes(StandardCharsets.UTF_8);
        return ByteBuffer.allocate(2 * Integer.BYTES + keyBytes.length + valueBytes.length)
                .putInt(keyBytes.length)
                .put(keyBytes)
                .putInt(valueBytes.length)
                .put(valueBytes)
                .array();
    }
}
