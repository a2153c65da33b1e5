package peer;

import io.grpc.Metadata;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerServiceDefinition;
import io.grpc.Status;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import java.io.ByteArrayOutputStream;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

/** What is served: all four forms of a call. */
final class GrpcService {
    private static final AtomicInteger CANCELLED = new AtomicInteger();
    private static final Metadata.Key<String> SUM =
            Metadata.Key.of("x-sum", Metadata.ASCII_STRING_MARSHALLER);

    private GrpcService() {}

    static String cancelled() {
        return CANCELLED.toString();
    }

    static NettyServerBuilder build(Map<String, String> command) {
        String name = command.get("name");
        int port = Integer.parseInt(command.get("port"));
        NettyServerBuilder builder =
                NettyServerBuilder.forAddress(new InetSocketAddress("127.0.0.1", port))
                        .maxInboundMessageSize(Grpc.MOST)
                        .addService(
                                ServerServiceDefinition.builder(Grpc.SERVICE)
                                        .addMethod(
                                                Grpc.method("Unary", MethodType.UNARY),
                                                handler(call -> new Unary(call, name)))
                                        .addMethod(
                                                Grpc.method(
                                                        "ServerStream",
                                                        MethodType.SERVER_STREAMING),
                                                handler(ServerStream::new))
                                        .addMethod(
                                                Grpc.method(
                                                        "ClientStream",
                                                        MethodType.CLIENT_STREAMING),
                                                handler(ClientStream::new))
                                        .addMethod(
                                                Grpc.method(
                                                        "BothStream", MethodType.BIDI_STREAMING),
                                                handler(BothStream::new))
                                        .build());
        if (command.containsKey("age")) {
            builder.maxConnectionAge(Integer.parseInt(command.get("age")), TimeUnit.MILLISECONDS);
        }
        return builder;
    }

    private interface Maker {
        Form make(ServerCall<byte[], byte[]> call);
    }

    private static ServerCallHandler<byte[], byte[]> handler(Maker maker) {
        return (call, headers) -> {
            call.sendHeaders(new Metadata());
            call.request(1);
            return maker.make(call);
        };
    }

    private abstract static class Form extends ServerCall.Listener<byte[]> {
        final ServerCall<byte[], byte[]> call;

        Form(ServerCall<byte[], byte[]> call) {
            this.call = call;
        }

        @Override
        public void onCancel() {
            CANCELLED.incrementAndGet();
        }
    }

    private static final class Unary extends Form {
        private final String name;
        private byte[] request;

        Unary(ServerCall<byte[], byte[]> call, String name) {
            super(call);
            this.name = name;
        }

        @Override
        public void onMessage(byte[] message) {
            request = message;
        }

        @Override
        public void onHalfClose() {
            String text = new String(request, StandardCharsets.UTF_8);
            Metadata trailers = new Metadata();
            trailers.put(SUM, String.valueOf(request.length));
            if (text.equals("wait")) {
                return;
            }
            if (text.equals("fail")) {
                call.close(Status.NOT_FOUND.withDescription("there is none: \u00e9"), trailers);
                return;
            }
            call.sendMessage((name + " " + text).getBytes(StandardCharsets.UTF_8));
            call.close(Status.OK, trailers);
        }
    }

    /** So many times; without end for "forever". */
    private static final class ServerStream extends Form {
        private int count = -1;
        private int sent;
        private boolean closed;

        ServerStream(ServerCall<byte[], byte[]> call) {
            super(call);
        }

        @Override
        public void onMessage(byte[] message) {
            String text = new String(message, StandardCharsets.UTF_8);
            count = text.equals("forever") ? Integer.MAX_VALUE : Integer.parseInt(text);
        }

        @Override
        public void onHalfClose() {
            onReady();
        }

        @Override
        public void onReady() {
            while (sent < count && call.isReady() && !call.isCancelled()) {
                call.sendMessage(String.valueOf(sent++).getBytes(StandardCharsets.UTF_8));
            }
            if (sent == count && !closed) {
                closed = true;
                call.close(Status.OK, new Metadata());
            }
        }
    }

    /** All in one. */
    private static final class ClientStream extends Form {
        private final ByteArrayOutputStream all = new ByteArrayOutputStream();

        ClientStream(ServerCall<byte[], byte[]> call) {
            super(call);
        }

        @Override
        public void onMessage(byte[] message) {
            all.writeBytes(message);
            call.request(1);
        }

        @Override
        public void onHalfClose() {
            call.sendMessage(all.toByteArray());
            call.close(Status.OK, new Metadata());
        }
    }

    /** Each as it comes. */
    private static final class BothStream extends Form {
        BothStream(ServerCall<byte[], byte[]> call) {
            super(call);
        }

        @Override
        public void onMessage(byte[] message) {
            call.sendMessage(message);
            call.request(1);
        }

        @Override
        public void onHalfClose() {
            call.close(Status.OK, new Metadata());
        }
    }
}
