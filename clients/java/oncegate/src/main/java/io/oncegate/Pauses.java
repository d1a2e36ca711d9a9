package io.oncegate;

import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/** Pauses between attempts: from 50 ms, doubling to 1 s, with jitter. */
final class Pauses {
  private static final long SHORTEST = TimeUnit.MILLISECONDS.toNanos(50);
  private static final long LONGEST = TimeUnit.SECONDS.toNanos(1);

  private long last;

  long next() {
    last = Math.max(SHORTEST, Math.min(2 * last, LONGEST));
    return (long) ((0.75 + 0.5 * ThreadLocalRandom.current().nextDouble()) * last);
  }
}
