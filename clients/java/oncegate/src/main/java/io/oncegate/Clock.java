package io.oncegate;

import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.TimeUnit;
import org.jspecify.annotations.Nullable;

/**
 * The clock that ends are counted on. It never goes backwards.
 *
 * <p>On Linux it also counts while the machine is suspended, as the server does: {@link System#nanoTime} stands
 * still meanwhile, {@code /proc/uptime} does not. Elsewhere it is {@code nanoTime}.
 */
final class Clock {
  /** {@code /proc/uptime} counts in 10 ms. A difference that is larger than this is a suspension. */
  private static final long COARSE = TimeUnit.MILLISECONDS.toNanos(100);

  /** Two readings that are further apart say nothing of each other: the process stood still between them. */
  private static final long TOGETHER = TimeUnit.MILLISECONDS.toNanos(20);

  private static final int ATTEMPTS = 3;

  private static final Clock CLOCK = new Clock(open());

  private final long began = System.nanoTime();
  private final byte[] line = new byte[32];
  private @Nullable RandomAccessFile uptime;
  private final long offset;
  private long suspended;

  private Clock(@Nullable RandomAccessFile uptime) {
    this.uptime = uptime;
    offset = readAhead();
  }

  /** Now, in nanoseconds; more than 0. */
  static long now() {
    return CLOCK.read();
  }

  private synchronized long read() {
    if (uptime != null) {
      long ahead = readAhead();
      if (uptime != null && ahead - offset > suspended + COARSE) {
        suspended = ahead - offset;
      }
    }
    return System.nanoTime() - began + suspended + TimeUnit.SECONDS.toNanos(1);
  }

  /** How much more the uptime is than the time of Java. */
  private long readAhead() {
    long ahead = Long.MAX_VALUE;
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
      long before = System.nanoTime();
      long read = readUptime();
      long after = System.nanoTime();
      // One that was held up between its readings shows too little: that is no suspension.
      ahead = read - after;
      if (uptime == null || after - before < TOGETHER) {
        break;
      }
    }
    return ahead;
  }

  private static @Nullable RandomAccessFile open() {
    try {
      return new RandomAccessFile("/proc/uptime", "r");
    } catch (IOException | SecurityException e) {
      return null;
    }
  }

  /** Not by a channel: the interruption of a handler would close that. */
  private long readUptime() {
    RandomAccessFile file = uptime;
    if (file == null) {
      return 0;
    }
    try {
      file.seek(0);
      int length = file.read(line);
      String text = new String(line, 0, Math.max(0, length), StandardCharsets.US_ASCII);
      return parse(text);
    } catch (IOException | NumberFormatException e) {
      uptime = null;
      return 0;
    }
  }

  /** Nanoseconds of a line such as {@code "350735.47 234388.90"}. */
  static long parse(String line) {
    String seconds = line.substring(0, Math.max(0, line.indexOf(' ')));
    int point = seconds.indexOf('.');
    if (point < 0 || seconds.length() != point + 3) {
      throw new NumberFormatException("no uptime");
    }
    return TimeUnit.SECONDS.toNanos(Long.parseLong(seconds.substring(0, point)))
        + TimeUnit.MILLISECONDS.toNanos(10 * Long.parseLong(seconds.substring(point + 1)));
  }
}
