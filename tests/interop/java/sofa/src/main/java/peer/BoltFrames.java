package peer;

import com.alipay.remoting.Connection;
import com.alipay.remoting.ProtocolCode;
import com.alipay.remoting.ResponseStatus;
import com.alipay.remoting.config.switches.ProtocolSwitch;
import com.alipay.remoting.rpc.HeartbeatAckCommand;
import com.alipay.remoting.rpc.HeartbeatCommand;
import com.alipay.remoting.rpc.RequestCommand;
import com.alipay.remoting.rpc.ResponseCommand;
import com.alipay.remoting.rpc.RpcCommand;
import com.alipay.remoting.rpc.RpcCommandType;
import com.alipay.remoting.rpc.RpcCodec;
import com.alipay.remoting.rpc.protocol.RpcRequestCommand;
import com.alipay.remoting.rpc.protocol.RpcResponseCommand;
import com.alipay.sofa.rpc.codec.bolt.SimpleMapSerializer;
import io.netty.buffer.ByteBuf;
import io.netty.buffer.ByteBufUtil;
import io.netty.buffer.Unpooled;
import io.netty.channel.embedded.EmbeddedChannel;
import java.net.InetSocketAddress;
import java.net.SocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.Collectors;

/**
 * SOFABolt's own codec, with SOFARPC's header section. Frames are in base 64, separated by commas.
 *
 * <p>{@code frames}: {@code count} random ones by {@code seed}. The answer has them, and what they
 * say, line by line as {@code read} does.
 *
 * <p>{@code read}: what each of the {@code frames} says, a line each; a frame that is refused, or
 * is none, is "error".
 */
final class BoltFrames {
    private static final int[] CRC = {ProtocolSwitch.CRC_SWITCH_INDEX};

    static {
        try {
            Class.forName("com.alipay.remoting.rpc.RpcRemoting"); // registers the protocols, once
        } catch (ClassNotFoundException error) {
            throw new IllegalStateException(error);
        }
    }

    private BoltFrames() {}

    static Map<String, String> frames(Map<String, String> command) throws Exception {
        Random random = new Random(Long.parseLong(command.get("seed")));
        List<String> frames = new ArrayList<>();
        for (int i = Integer.parseInt(command.get("count")); i > 0; i--) {
            frames.add(Base64.getEncoder().encodeToString(write(random)));
        }
        return read(Map.of("frames", String.join(",", frames)));
    }

    static Map<String, String> read(Map<String, String> command) {
        Map<String, String> answer = new LinkedHashMap<>();
        String frames = command.get("frames");
        answer.put("frames", frames);
        List<String> lines = new ArrayList<>();
        for (String frame : frames.split(",")) {
            lines.add(describe(Base64.getDecoder().decode(frame)));
        }
        answer.put("lines", String.join("\n", lines));
        return answer;
    }

    // ---- writing ----

    private static byte[] write(Random random) throws Exception {
        RpcCommand command =
                switch (random.nextInt(8)) {
                    case 0 -> new HeartbeatCommand();
                    case 1 -> new HeartbeatAckCommand();
                    case 2, 3 -> response(random);
                    default -> request(random);
                };
        command.setId(random.nextInt());
        command.setSerializer((byte) (1 + random.nextInt(20)));
        command.setProtocolSwitch(
                random.nextBoolean() ? ProtocolSwitch.create(CRC) : new ProtocolSwitch());
        EmbeddedChannel channel = new EmbeddedChannel(new RpcCodec().newEncoder());
        int version = random.nextInt(3);
        channel.attr(Connection.PROTOCOL).set(ProtocolCode.fromBytes((byte) (version == 0 ? 1 : 2)));
        channel.attr(Connection.VERSION).set((byte) Math.max(version, 1));
        channel.writeOutbound(command);
        ByteBuf written = channel.readOutbound();
        return ByteBufUtil.getBytes(written);
    }

    private static RpcCommand request(Random random) throws Exception {
        RpcRequestCommand request = new RpcRequestCommand();
        if (random.nextInt(4) == 0) {
            request.setType(RpcCommandType.REQUEST_ONEWAY);
        }
        request.setTimeout(random.nextBoolean() ? random.nextInt(100_000) : -random.nextInt(2));
        fill(request, random);
        return request;
    }

    private static RpcCommand response(Random random) throws Exception {
        RpcResponseCommand response = new RpcResponseCommand();
        ResponseStatus[] statuses = ResponseStatus.values();
        response.setResponseStatus(statuses[random.nextInt(3) * random.nextInt(statuses.length / 2)]);
        fill(response, random);
        return response;
    }

    private static void fill(RpcCommand command, Random random) throws Exception {
        if (random.nextInt(4) > 0) {
            command.setClazz(text(random, 60).getBytes(StandardCharsets.UTF_8));
        }
        if (random.nextInt(4) > 0) {
            command.setHeader(new SimpleMapSerializer().encode(headers(random)));
        }
        byte[] content = new byte[random.nextInt(random.nextInt(8) == 0 ? 100_000 : 100)];
        random.nextBytes(content);
        command.setContent(content);
    }

    private static Map<String, String> headers(Random random) {
        String[] names = {
            "sofa_head_target_service", "service", "sofa_head_method_name",
            "sofa_head_response_error", "app", "uid"
        };
        Map<String, String> headers = new LinkedHashMap<>();
        for (String name : names) {
            if (random.nextBoolean()) {
                headers.put(name, random.nextInt(4) == 0 ? "true" : text(random, 40));
            }
        }
        for (int i = random.nextInt(4); i > 0; i--) {
            headers.put(text(random, 20), text(random, 300));
        }
        return headers;
    }

    private static String text(Random random, int most) {
        StringBuilder text = new StringBuilder();
        for (int i = random.nextInt(most); i > 0; i--) {
            text.append((char) (random.nextInt(10) > 0 ? ' ' + random.nextInt(95) : 0x4e00 + i));
        }
        return text.toString();
    }

    // ---- reading ----

    private static String describe(byte[] frame) {
        EmbeddedChannel channel =
                new EmbeddedChannel(new RpcCodec().newDecoder()) {
                    @Override
                    protected SocketAddress remoteAddress0() {
                        return new InetSocketAddress(0); // the decoder wants to have one
                    }
                };
        try {
            channel.writeInbound(Unpooled.wrappedBuffer(frame));
            Object read = channel.readInbound();
            if (read instanceof List<?> batch && batch.size() == 1) {
                read = batch.get(0);
            }
            return read instanceof RpcCommand command ? describe(command) : "error";
        } catch (Exception | OutOfMemoryError error) { // it believes any length
            return "error";
        }
    }

    private static String describe(RpcCommand command) throws Exception {
        Map<String, String> headers = new SimpleMapSerializer().decode(command.getHeader());
        return String.join(
                " ",
                command.getClass().getSimpleName(),
                String.valueOf(command.getType()),
                Integer.toUnsignedString(command.getId()),
                String.valueOf(command.getSerializer()),
                String.valueOf(number(command)),
                String.valueOf(command.getClazzLength()),
                String.valueOf(command.getContentLength()),
                headers.entrySet().stream()
                        .map(header -> base64(header.getKey()) + ":" + base64(header.getValue()))
                        .sorted()
                        .collect(Collectors.joining(",", "[", "]")));
    }

    private static int number(RpcCommand command) {
        if (command instanceof RequestCommand request) {
            return request.getTimeout();
        }
        return ((ResponseCommand) command).getResponseStatus().getValue();
    }

    private static String base64(String text) {
        return Base64.getEncoder().encodeToString(text.getBytes(StandardCharsets.UTF_8));
    }
}
