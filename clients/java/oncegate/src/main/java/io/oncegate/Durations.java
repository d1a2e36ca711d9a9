package io.oncegate;

import com.google.protobuf.Duration;
import java.util.concurrent.TimeUnit;

/** Between the durations of the contract, of Java, and nanoseconds. */
final class Durations {
  private Durations() {}

  static long nanos(Duration duration) {
    return TimeUnit.SECONDS.toNanos(duration.getSeconds()) + duration.getNanos();
  }

  /** Saturates: some 292 years. */
  static long nanos(java.time.Duration duration) {
    try {
      return duration.toNanos();
    } catch (ArithmeticException e) {
      return duration.isNegative() ? Long.MIN_VALUE : Long.MAX_VALUE;
    }
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
