package peer;

import com.alipay.common.tracer.core.context.span.SofaTracerSpanContext;
import com.alipay.common.tracer.core.holder.SofaTraceContextHolder;
import com.alipay.common.tracer.core.span.SofaTracerSpan;

/** Answers {@code trace} with what SOFATracer knows of the call: "TRACE RPC SAMPLED". */
final class TracedEcho extends EchoServer {
    TracedEcho(String name) {
        super(name);
    }

    @Override
    public String echo(String text) {
        return text.equals("trace") ? trace() : super.echo(text);
    }

    private static String trace() {
        SofaTracerSpan span = SofaTraceContextHolder.getSofaTraceContext().getCurrentSpan();
        if (span == null) {
            return "none";
        }
        SofaTracerSpanContext context = span.getSofaTracerSpanContext();
        return context.getTraceId() + " " + context.getSpanId() + " " + context.isSampled();
    }
}
