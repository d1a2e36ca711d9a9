package io.oncegate;

import com.google.protobuf.Duration;
import java.util.concurrent.TimeUnit;

/** Between the durations of the contract, of Java, and nanoseconds. */
final class Durations {
  private static final java.time.Duration YEAR = java.time.Duration.ofDays(365);

  private Durations() {}

  static long nanos(Duration duration) {
    return TimeUnit.SECONDS.toNanos(duration.getSeconds()) + duration.getNanos();
  }

  /** At most a year, so that sums do not overflow; at least 0. */
  static long nanos(java.time.Duration duration) {
    if (duration.isNegative()) {
      return 0;
    }
    return duration.compareTo(YEAR) > 0 ? YEAR.toNanos() : duration.toNanos();
  }

  static Duration of(long nanos) {
    long second = TimeUnit.SECONDS.toNanos(1);
    return Duration.newBuilder().setSeconds(nanos / second).setNanos((int) (nanos % second)).build();
  }

  static Duration of(java.time.Duration duration) {
    return Duration.newBuilder().setSeconds(duration.getSeconds()).setNanos(duration.getNano()).build();
  }

  static java.time.Duration read(Duration duration) {
    return java.time.Duration.ofSeconds(duration.getSeconds(), duration.getNanos());
  }
}
