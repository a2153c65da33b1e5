import java.io.IOException;
import java.io.InputStream;
import java.net.HttpURLConnection;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;

/** The ways of Java to the network: {@code Client socket|urlconnection|nio|httpclient HOST PORT}. */
public final class Client {
    private static final int PATIENCE_MS = 20_000;

    public static void main(String[] arguments) throws Exception {
        String host = arguments[1];
        int port = Integer.parseInt(arguments[2]);
        try {
            switch (arguments[0]) {
                case "socket" -> socket(host, port);
                case "urlconnection" -> urlConnection(host, port);
                case "nio" -> nio(host, port);
                case "httpclient" -> httpClient(host, port);
                default -> throw new IllegalArgumentException(arguments[0]);
            }
        } catch (IOException error) {
            System.out.println(error);
            System.exit(1);
        }
    }

    private static URI uri(String host, int port) {
        String literal = host.contains(":") ? "[" + host + "]" : host;
        return URI.create("http://" + literal + ":" + port + "/whoami");
    }

    private static byte[] request() {
        return "GET /whoami HTTP/1.0\r\nHost: interop\r\n\r\n".getBytes(StandardCharsets.US_ASCII);
    }

    private static void printPeer(InetSocketAddress peer) {
        System.out.println("peer " + peer.getAddress().getHostAddress() + " " + peer.getPort());
    }

    private static void printBody(String response) {
        System.out.print(response.substring(response.indexOf("\r\n\r\n") + 4));
    }

    private static void socket(String host, int port) throws IOException {
        try (Socket socket = new Socket(host, port)) {
            printPeer((InetSocketAddress) socket.getRemoteSocketAddress());
            socket.getOutputStream().write(request());
            printBody(new String(socket.getInputStream().readAllBytes(), StandardCharsets.US_ASCII));
        }
    }

    private static void urlConnection(String host, int port) throws IOException {
        HttpURLConnection connection = (HttpURLConnection) uri(host, port).toURL().openConnection();
        connection.setConnectTimeout(PATIENCE_MS);
        try (InputStream body = connection.getInputStream()) {
            System.out.print(new String(body.readAllBytes(), StandardCharsets.US_ASCII));
        }
    }

    private static void httpClient(String host, int port) throws IOException, InterruptedException {
        HttpRequest request = HttpRequest.newBuilder(uri(host, port)).build();
        HttpResponse<String> response =
                HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        System.out.print(response.body());
    }

    private static void nio(String host, int port) throws IOException {
        try (Selector selector = Selector.open();
                SocketChannel channel = SocketChannel.open()) {
            channel.configureBlocking(false);
            channel.connect(new InetSocketAddress(host, port));
            channel.register(selector, SelectionKey.OP_CONNECT);
            ByteBuffer request = ByteBuffer.wrap(request());
            ByteBuffer response = ByteBuffer.allocate(64 * 1024);
            while (selector.select(PATIENCE_MS) > 0) {
                SelectionKey key = selector.selectedKeys().iterator().next();
                selector.selectedKeys().clear();
                if (key.isConnectable() && channel.finishConnect()) {
                    printPeer((InetSocketAddress) channel.getRemoteAddress());
                    key.interestOps(SelectionKey.OP_WRITE);
                } else if (key.isWritable()) {
                    channel.write(request);
                    if (!request.hasRemaining()) {
                        key.interestOps(SelectionKey.OP_READ);
                    }
                } else if (channel.read(response) < 0) {
                    printBody(new String(response.array(), 0, response.position(), StandardCharsets.US_ASCII));
                    return;
                }
            }
            throw new IOException("nothing happened in time");
        }
    }
}
