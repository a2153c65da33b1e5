package peer;

/** A service by what tells it from others of the same interface; "" is none. */
record DubboName(String version, String group) {
    /** From "VERSION GROUP". */
    static DubboName parse(String text) {
        int space = text.indexOf(' ');
        return space < 0
                ? new DubboName(text, "")
                : new DubboName(text.substring(0, space), text.substring(space + 1));
    }
}
