package peer;

import org.apache.dubbo.rpc.RpcContext;

/** Answers {@code attachment NAME} with the value that came with the call, "null" where none did. */
final class TracedEcho extends EchoServer {
    private static final String ASKED = "attachment ";

    TracedEcho(String name) {
        super(name);
    }

    @Override
    public String echo(String text) {
        if (!text.startsWith(ASKED)) {
            return super.echo(text);
        }
        String name = text.substring(ASKED.length());
        return String.valueOf(RpcContext.getServerAttachment().getAttachment(name));
    }
}
