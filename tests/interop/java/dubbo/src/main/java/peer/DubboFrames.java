package peer;

import static org.apache.dubbo.common.constants.CommonConstants.HEARTBEAT_EVENT;
import static org.apache.dubbo.common.constants.CommonConstants.READONLY_EVENT;

import com.alibaba.com.caucho.hessian.io.Hessian2Input;
import com.alibaba.com.caucho.hessian.io.Hessian2Output;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.lang.reflect.Proxy;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.apache.dubbo.common.URL;
import org.apache.dubbo.remoting.Channel;
import org.apache.dubbo.remoting.buffer.ChannelBuffer;
import org.apache.dubbo.remoting.buffer.ChannelBuffers;
import org.apache.dubbo.remoting.exchange.Request;
import org.apache.dubbo.remoting.exchange.Response;
import org.apache.dubbo.rpc.AppResponse;
import org.apache.dubbo.rpc.RpcInvocation;
import org.apache.dubbo.rpc.model.FrameworkModel;
import org.apache.dubbo.rpc.protocol.dubbo.DubboCodec;

/**
 * Dubbo's own codec, and its Hessian. Bytes are in base 64, lists separated by commas.
 *
 * <p>{@code values}: {@code count} streams by {@code seed}, each of some random values: the bytes,
 * and behind a colon each, where a value ends.
 *
 * <p>{@code skips}: for each of the {@code streams} where its first value ends; -1: it has none.
 *
 * <p>{@code requests}, {@code responses}: {@code count} frames by {@code seed}, and a line for each
 * that says what is in it.
 *
 * <p>{@code read}: what each of the {@code frames} says, which are answers or heartbeats.
 */
final class DubboFrames {
    private static final DubboCodec CODEC = new DubboCodec(FrameworkModel.defaultModel());
    private static final URL ADDRESS = URL.valueOf("dubbo://127.0.0.1:20880/peer.Echo");
    private static final Channel CHANNEL =
            (Channel)
                    Proxy.newProxyInstance(
                            DubboFrames.class.getClassLoader(),
                            new Class<?>[] {Channel.class},
                            (proxy, method, arguments) ->
                                    method.getName().equals("getUrl") ? ADDRESS : null);

    private DubboFrames() {}

    // ---- values ----

    static Map<String, String> values(Map<String, String> command) {
        RandomValues random = new RandomValues(Long.parseLong(command.get("seed")));
        List<String> streams = new ArrayList<>();
        while (streams.size() < Integer.parseInt(command.get("count"))) {
            streams.add(stream(random));
        }
        return Map.of("streams", String.join(",", streams));
    }

    private static String stream(RandomValues random) {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        Hessian2Output output = new Hessian2Output(bytes);
        List<String> ends = new ArrayList<>();
        try {
            for (int i = random.random.nextInt(4); i >= 0; i--) {
                output.writeObject(random.next());
                output.flushBuffer();
                ends.add(String.valueOf(bytes.size()));
            }
        } catch (IOException error) {
            throw new IllegalStateException(error);
        }
        return base64(bytes.toByteArray()) + ":" + String.join(":", ends);
    }

    static Map<String, String> skips(Map<String, String> command) {
        return Map.of(
                "ends",
                Stream.of(command.get("streams").split(","))
                        .map(stream -> String.valueOf(end(Base64.getDecoder().decode(stream))))
                        .collect(Collectors.joining(",")));
    }

    private static int end(byte[] stream) {
        Hessian2Input input = new Hessian2Input(new ByteArrayInputStream(stream));
        int left = 0;
        try {
            input.readObject();
            while (input.read() >= 0) {
                left++;
            }
        } catch (Throwable error) {
            return -1;
        }
        return stream.length - left;
    }

    // ---- frames ----

    static Map<String, String> requests(Map<String, String> command) throws Exception {
        return write(command, DubboFrames::request);
    }

    static Map<String, String> responses(Map<String, String> command) throws Exception {
        return write(command, DubboFrames::response);
    }

    private interface Maker {
        Object make(RandomValues random, List<String> line);
    }

    private static Map<String, String> write(Map<String, String> command, Maker maker)
            throws Exception {
        RandomValues random = new RandomValues(Long.parseLong(command.get("seed")));
        List<String> frames = new ArrayList<>();
        List<String> lines = new ArrayList<>();
        while (frames.size() < Integer.parseInt(command.get("count"))) {
            List<String> line = new ArrayList<>();
            ChannelBuffer buffer = ChannelBuffers.dynamicBuffer(1024);
            CODEC.encode(CHANNEL, buffer, maker.make(random, line));
            byte[] frame = new byte[buffer.readableBytes()];
            buffer.readBytes(frame);
            frames.add(base64(frame));
            lines.add(String.join(" ", line));
        }
        Map<String, String> answer = new LinkedHashMap<>();
        answer.put("frames", String.join(",", frames));
        answer.put("lines", String.join("\n", lines));
        return answer;
    }

    /** The line: kind, id, path, version, method, group, timeout and how many attachments are strings. */
    private static Request request(RandomValues values, List<String> line) {
        Random random = values.random;
        Request request = new Request(random.nextLong());
        request.setVersion("2.0.2");
        request.setTwoWay(random.nextInt(4) > 0);
        line.add(request.isTwoWay() ? "request" : "oneway");
        line.add(Long.toUnsignedString(request.getId()));
        if (random.nextInt(8) == 0) {
            request.setEvent(random.nextBoolean() ? HEARTBEAT_EVENT : READONLY_EVENT);
            line.set(0, request.isHeartbeat() ? "heartbeat" : "readonly");
            return request;
        }
        Object[] arguments = new Object[random.nextInt(5)];
        Class<?>[] types = new Class<?>[arguments.length];
        Class<?>[] some = {Object.class, int.class, String[].class, long[][].class, List.class};
        for (int i = 0; i < arguments.length; i++) {
            arguments[i] = values.next();
            types[i] = some[random.nextInt(some.length)];
        }
        RpcInvocation invocation =
                new RpcInvocation(
                        null, "method" + random.nextInt(10), "Service", "Service", types, arguments);
        attach(invocation, values, line);
        request.setData(invocation);
        return request;
    }

    private static void attach(RpcInvocation invocation, RandomValues values, List<String> line) {
        Random random = values.random;
        String path = "com.example.Service" + random.nextInt(10);
        String version = random.nextBoolean() ? random.nextInt(3) + ".0.0" : "";
        String group = random.nextBoolean() ? values.text(20) : "";
        int timeout = random.nextBoolean() ? 1 + random.nextInt(1_000_000) : 0;
        invocation.setAttachment("path", path);
        invocation.setAttachment("interface", path);
        if (!version.isEmpty()) {
            invocation.setAttachment("version", version);
        }
        if (!group.isEmpty()) {
            invocation.setAttachment("group", group);
        }
        if (timeout > 0) {
            Object number = random.nextBoolean() ? timeout : Long.valueOf(timeout);
            invocation.setObjectAttachment(
                    "timeout", random.nextBoolean() ? String.valueOf(timeout) : number);
        }
        for (int i = random.nextInt(4); i > 0; i--) {
            invocation.setObjectAttachment("any" + i, values.next());
        }
        long strings =
                invocation.getObjectAttachments().values().stream()
                        .filter(DubboFrames::isString)
                        .count();
        Stream.of(path, version, invocation.getMethodName(), group, String.valueOf(timeout))
                .forEach(text -> line.add("=" + base64(text.getBytes(StandardCharsets.UTF_8))));
        line.add(String.valueOf(strings));
    }

    /** Whether it is written as a string, and in one piece. */
    private static boolean isString(Object value) {
        return value instanceof Character
                || (value instanceof String text && text.length() <= 0x8000);
    }

    /** The line: kind, id, status. */
    private static Response response(RandomValues values, List<String> line) {
        Random random = values.random;
        Response response =
                new Response(random.nextLong(), random.nextBoolean() ? "2.0.2" : "2.0.1");
        boolean failed = random.nextInt(3) == 0;
        line.add(failed ? "exception" : "value");
        line.add(Long.toUnsignedString(response.getId()));
        if (random.nextInt(6) == 0) {
            response.setEvent(HEARTBEAT_EVENT);
            line.set(0, "heartbeat");
        } else if (random.nextInt(4) == 0) {
            response.setStatus(Response.SERVICE_NOT_FOUND);
            response.setErrorMessage(values.text(100));
            line.set(0, "error");
        } else {
            AppResponse result =
                    failed
                            ? new AppResponse(new IllegalStateException(values.text(20)))
                            : new AppResponse(random.nextBoolean() ? values.next() : null);
            response.setResult(result);
        }
        line.add(String.valueOf(response.getStatus()));
        return response;
    }

    /** Kind, id, status and, of an error, its message. */
    static Map<String, String> read(Map<String, String> command) throws Exception {
        List<String> lines = new ArrayList<>();
        for (String frame : command.get("frames").split(",")) {
            ChannelBuffer buffer = ChannelBuffers.wrappedBuffer(Base64.getDecoder().decode(frame));
            lines.add(describe(CODEC.decode(CHANNEL, buffer)) + " " + buffer.readableBytes());
        }
        return Map.of("lines", String.join("\n", lines));
    }

    private static String describe(Object message) {
        if (message instanceof Request request) {
            return String.join(
                    " ",
                    request.isHeartbeat() ? "heartbeat" : "request",
                    Long.toUnsignedString(request.getId()),
                    String.valueOf(request.isTwoWay()));
        }
        if (message instanceof Response response) {
            String text = String.valueOf(response.getErrorMessage());
            return String.join(
                    " ",
                    response.isHeartbeat() ? "heartbeat-answer" : "response",
                    Long.toUnsignedString(response.getId()),
                    String.valueOf(response.getStatus()),
                    base64(text.getBytes(StandardCharsets.UTF_8)));
        }
        return String.valueOf(message);
    }

    private static String base64(byte[] bytes) {
        return Base64.getEncoder().encodeToString(bytes);
    }
}
