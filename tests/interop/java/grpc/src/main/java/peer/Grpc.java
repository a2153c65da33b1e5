package peer;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.Server;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.StreamObserver;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;

/**
 * Java's gRPC, client and server, by commands. Messages are bytes.
 *
 * <ul>
 *   <li>{@code serve}: {@code port}, {@code name}, and {@code age}: the milliseconds after which a
 *       connection is told to go away.
 *   <li>{@code stop}: of the server at {@code port}, in order.
 *   <li>{@code cancelled}: how many calls the server has seen cancelled.
 *   <li>{@code call}, {@code burst}: {@code address}, {@code text}, {@code deadline} in
 *       milliseconds.
 *   <li>{@code forms}: a call of each form to {@code address}, with {@code count} messages of
 *       {@code size} bytes.
 *   <li>{@code cancel}: begins a call that has no end, and takes it back behind the first message.
 * </ul>
 */
public final class Grpc {
    static final String SERVICE = "test.Echo";
    static final int MOST = 64 << 20; // bytes of a message
    private static final int PATIENCE_S = 30;

    /** As they are. */
    private static final MethodDescriptor.Marshaller<byte[]> BYTES =
            new MethodDescriptor.Marshaller<>() {
                @Override
                public InputStream stream(byte[] value) {
                    return new ByteArrayInputStream(value);
                }

                @Override
                public byte[] parse(InputStream stream) {
                    try {
                        return stream.readAllBytes();
                    } catch (IOException error) {
                        throw new UncheckedIOException(error);
                    }
                }
            };

    private static final Map<String, ManagedChannel> CHANNELS = new ConcurrentHashMap<>();
    private static final Map<String, Server> SERVERS = new ConcurrentHashMap<>();

    private Grpc() {}

    public static void main(String[] arguments) throws Exception {
        Calls.commands(Grpc::call)
                .on("serve", Grpc::serve)
                .on("stop", Grpc::stop)
                .on("cancelled", command -> Map.of("value", GrpcService.cancelled()))
                .on("forms", Grpc::forms)
                .on("cancel", Grpc::cancel)
                .serve();
    }

    static MethodDescriptor<byte[], byte[]> method(String name, MethodType type) {
        return MethodDescriptor.<byte[], byte[]>newBuilder(BYTES, BYTES)
                .setType(type)
                .setFullMethodName(MethodDescriptor.generateFullMethodName(SERVICE, name))
                .build();
    }

    private static Map<String, String> serve(Map<String, String> command) throws IOException {
        Server server = GrpcService.build(command).build().start();
        SERVERS.put(command.get("port"), server);
        return Map.of();
    }

    private static Map<String, String> stop(Map<String, String> command) throws Exception {
        boolean ended =
                SERVERS.get(command.get("port"))
                        .shutdown()
                        .awaitTermination(PATIENCE_S, TimeUnit.SECONDS);
        return Map.of("value", String.valueOf(ended));
    }

    private static Channel channel(Map<String, String> command) {
        return CHANNELS.computeIfAbsent(
                command.get("address"),
                address ->
                        ManagedChannelBuilder.forTarget(address)
                                .usePlaintext()
                                .maxInboundMessageSize(MOST)
                                .build());
    }

    private static ClientCall<byte[], byte[]> begin(
            Map<String, String> command, String name, MethodType type) {
        int deadline = Integer.parseInt(command.getOrDefault("deadline", PATIENCE_S + "000"));
        return channel(command)
                .newCall(
                        method(name, type),
                        CallOptions.DEFAULT.withDeadlineAfter(deadline, TimeUnit.MILLISECONDS));
    }

    private static CompletableFuture<String> call(Map<String, String> command) {
        CompletableFuture<String> answer = new CompletableFuture<>();
        byte[] text = command.get("text").getBytes(StandardCharsets.UTF_8);
        ClientCalls.asyncUnaryCall(
                begin(command, "Unary", MethodType.UNARY),
                text,
                new StreamObserver<byte[]>() {
                    @Override
                    public void onNext(byte[] value) {
                        answer.complete(new String(value, StandardCharsets.UTF_8));
                    }

                    @Override
                    public void onError(Throwable error) {
                        answer.completeExceptionally(error);
                    }

                    @Override
                    public void onCompleted() {
                        answer.completeExceptionally(new IOException("no answer"));
                    }
                });
        return answer;
    }

    private static Map<String, String> forms(Map<String, String> command) throws Exception {
        int count = Integer.parseInt(command.get("count"));
        int size = Integer.parseInt(command.get("size"));
        List<String> numbers = new ArrayList<>();
        List<String> messages = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            numbers.add(String.valueOf(i));
            messages.add(Character.toString('a' + i % 26).repeat(size));
        }
        List<String> all = List.of(String.join("", messages));
        exchange(command, "ServerStream", List.of(command.get("count")), numbers);
        exchange(command, "ClientStream", messages, all);
        exchange(command, "BothStream", messages, messages);
        return Map.of("value", "right");
    }

    /** Sends messages while answers come, and compares these. */
    private static void exchange(
            Map<String, String> command, String name, List<String> messages, List<String> expected)
            throws Exception {
        List<String> answers = new ArrayList<>();
        CompletableFuture<Void> ended = new CompletableFuture<>();
        StreamObserver<byte[]> requests =
                ClientCalls.asyncBidiStreamingCall(
                        begin(command, name, MethodType.BIDI_STREAMING),
                        new StreamObserver<byte[]>() {
                            @Override
                            public void onNext(byte[] value) {
                                answers.add(new String(value, StandardCharsets.UTF_8));
                            }

                            @Override
                            public void onError(Throwable error) {
                                ended.completeExceptionally(error);
                            }

                            @Override
                            public void onCompleted() {
                                ended.complete(null);
                            }
                        });
        messages.forEach(each -> requests.onNext(each.getBytes(StandardCharsets.UTF_8)));
        requests.onCompleted();
        ended.get(PATIENCE_S, TimeUnit.SECONDS);
        if (!answers.equals(expected)) {
            throw new IOException(name + ": other answers");
        }
    }

    private static Map<String, String> cancel(Map<String, String> command) throws Exception {
        Context.CancellableContext context = Context.current().withCancellation();
        MethodDescriptor<byte[], byte[]> method =
                method("ServerStream", MethodType.SERVER_STREAMING);
        byte[] forever = "forever".getBytes(StandardCharsets.UTF_8);
        try {
            byte[] first =
                    context.call(
                            () ->
                                    ClientCalls.blockingServerStreamingCall(
                                                    channel(command),
                                                    method,
                                                    CallOptions.DEFAULT,
                                                    forever)
                                            .next());
            return Map.of("value", new String(first, StandardCharsets.UTF_8));
        } finally {
            context.cancel(null);
        }
    }
}
