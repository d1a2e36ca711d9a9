package io.oncegate;

import java.util.concurrent.TimeUnit;

/** Waits that a thread's interruption does not end: it is interrupted afterwards. */
final class Waiting {
  /**
   * A timer that is late by more than {@code LATE} was held up: the process stood still, or had no processor. What
   * came meanwhile is read first, for {@code CATCH_UP}.
   */
  private static final long LATE = TimeUnit.MILLISECONDS.toNanos(200);

  static final long CATCH_UP = TimeUnit.MILLISECONDS.toNanos(300);

  private Waiting() {}

  /** Waits for something for so many nanoseconds. */
  interface Wait<T> {
    T until(long nanos) throws InterruptedException;
  }

  static <T> T uninterruptibly(Wait<T> wait, long nanos) {
    long end = System.nanoTime() + nanos;
    boolean interrupted = false;
    try {
      while (true) {
        try {
          return wait.until(Math.max(0, end - System.nanoTime()));
        } catch (InterruptedException e) {
          interrupted = true;
        }
      }
    } finally {
      if (interrupted) {
        Thread.currentThread().interrupt();
      }
    }
  }

  /** How much longer to wait after a wait that was to end at this time: for what came while it was held up. */
  static long catchUp(long until) {
    return Clock.now() - until > LATE ? CATCH_UP : 0;
  }
}
