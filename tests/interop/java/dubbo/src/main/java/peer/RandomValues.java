package peer;

import java.io.Serializable;
import java.math.BigDecimal;
import java.math.BigInteger;
import java.sql.Timestamp;
import java.time.Instant;
import java.time.LocalDateTime;
import java.time.ZoneOffset;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Date;
import java.util.EnumMap;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.LinkedList;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import java.util.UUID;
import java.util.concurrent.TimeUnit;

/** Values of all kinds that services take, in each other and with references to each other. */
final class RandomValues {
    private static final int DEEP = 5;

    final Random random;
    private final List<Object> earlier = new ArrayList<>();

    RandomValues(long seed) {
        random = new Random(seed);
    }

    /** A bean, whose fields are objects of any class. */
    public static class Bean implements Serializable {
        private static final long serialVersionUID = 1L;

        int number;
        String name;
        boolean right;
        transient Object left;
        Serializable any;
        Bean next;
    }

    /** One that inherits, and has a field of the same name. */
    public static class Derived extends Bean {
        private static final long serialVersionUID = 1L;

        double ratio;
        long[] numbers;
    }

    /** Without fields. */
    public static class Empty implements Serializable {
        private static final long serialVersionUID = 1L;
    }

    Serializable next() {
        earlier.clear();
        return value(0);
    }

    private Serializable value(int depth) {
        if (random.nextInt(12) == 0 && !earlier.isEmpty()) {
            return (Serializable) earlier.get(random.nextInt(earlier.size()));
        }
        Serializable value = depth < DEEP && random.nextBoolean() ? holder(depth + 1) : scalar();
        earlier.add(value);
        return value;
    }

    private Serializable scalar() {
        return switch (random.nextInt(20)) {
            case 0 -> null;
            case 1 -> random.nextBoolean();
            case 2 -> random.nextInt(100) - 50;
            case 3 -> random.nextInt(8192) - 4096;
            case 4 -> random.nextInt();
            case 5 -> (long) random.nextInt(64) - 32;
            case 6 -> random.nextLong() >> random.nextInt(64);
            case 7 -> random.nextInt(1000) / 8.0;
            case 8 -> random.nextDouble() * 1e100;
            case 9 -> (float) random.nextInt(300);
            case 10 -> (byte) random.nextInt();
            case 11 -> (char) random.nextInt(0xd800);
            case 12 -> new Date(random.nextLong() >> 20);
            case 13 -> new BigDecimal(BigInteger.valueOf(random.nextLong()), 5);
            case 14 -> bytes();
            case 15 -> other();
            default -> text(random.nextInt(30) == 0 ? 70_000 : 60);
        };
    }

    private Serializable other() {
        return switch (random.nextInt(8)) {
            case 0 -> new Timestamp(random.nextInt());
            case 1 -> LocalDateTime.ofEpochSecond(random.nextInt(), 5, ZoneOffset.UTC);
            case 2 -> Instant.ofEpochSecond(random.nextInt());
            case 3 -> Locale.GERMANY;
            case 4 -> TimeUnit.values()[random.nextInt(7)];
            case 5 -> new UUID(random.nextLong(), random.nextLong());
            case 6 -> String.class;
            default -> new IllegalStateException(text(20), new EchoException(text(20)));
        };
    }

    private byte[] bytes() {
        byte[] bytes = new byte[random.nextInt(random.nextInt(10) == 0 ? 100_000 : 40)];
        random.nextBytes(bytes);
        return bytes;
    }

    /** Of up to so many UTF-16 units. */
    String text(int most) {
        StringBuilder text = new StringBuilder();
        int size = random.nextInt(most);
        boolean ascii = random.nextBoolean();
        while (text.length() < size) {
            switch (ascii ? 0 : random.nextInt(4)) {
                case 1 -> text.append((char) (0x80 + random.nextInt(0x700)));
                case 2 -> text.append((char) (0x800 + random.nextInt(0xc000)));
                case 3 -> text.appendCodePoint(0x10000 + random.nextInt(0x10000));
                default -> text.append((char) (' ' + random.nextInt(95)));
            }
        }
        return text.toString();
    }

    private Serializable holder(int depth) {
        return switch (random.nextInt(14)) {
            case 0, 1 -> fill(new ArrayList<>(), depth);
            case 2 -> fill(new LinkedList<>(), depth);
            case 3 -> (Serializable) Arrays.asList(value(depth), value(depth));
            case 4 -> (Serializable) Collections.unmodifiableList(fill(new ArrayList<>(), depth));
            case 5 -> new HashSet<>(List.of(random.nextInt(), text(10)));
            case 6, 7 -> map(new HashMap<>(), depth);
            case 8 -> map(new LinkedHashMap<>(), depth);
            case 9 -> map(new TreeMap<>(), depth);
            case 10 -> new EnumMap<>(Map.of(TimeUnit.DAYS, value(depth) + "", TimeUnit.HOURS, ""));
            case 11 -> array(depth);
            case 12 -> new ArrayDeque<>(List.of(1, 2, text(10)));
            default -> bean(depth);
        };
    }

    private <T extends List<Object> & Serializable> T fill(T list, int depth) {
        for (int i = random.nextInt(random.nextInt(10) == 0 ? 40 : 5); i > 0; i--) {
            list.add(value(depth));
        }
        return list;
    }

    private <T extends Map<Object, Object> & Serializable> T map(T map, int depth) {
        for (int i = random.nextInt(5); i > 0; i--) {
            map.put(text(10), value(depth));
        }
        return map;
    }

    private Serializable array(int depth) {
        return switch (random.nextInt(7)) {
            case 0 -> random.ints(random.nextInt(20)).toArray();
            case 1 -> random.longs(random.nextInt(20)).toArray();
            case 2 -> new String[] {text(10), null, text(10)};
            case 3 -> new Object[] {value(depth), value(depth)};
            case 4 -> new int[][] {{1, 2}, {}, {3}};
            case 5 -> new Bean[] {bean(depth), null};
            default -> new boolean[] {true, false};
        };
    }

    private Bean bean(int depth) {
        Bean bean = random.nextBoolean() ? new Bean() : new Derived();
        earlier.add(bean); // what is in it may refer to it
        bean.number = random.nextInt();
        bean.name = text(30);
        bean.any = random.nextInt(5) == 0 ? new Empty() : value(depth);
        if (random.nextBoolean() && depth < DEEP) {
            bean.next = bean(depth + 1);
        }
        return bean;
    }
}
