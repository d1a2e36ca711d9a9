package io.oncegate;

import io.grpc.ClientCall;
import java.util.HashSet;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;

/** Ends the calls that are made for something, and the pauses between them, once that is over. */
final class Stop {
  private final CountDownLatch stopped = new CountDownLatch(1);
  private final Set<ClientCall<?, ?>> calls = new HashSet<>(); // guarded by itself

  void stop() {
    Set<ClientCall<?, ?>> made;
    synchronized (calls) {
      stopped.countDown();
      made = Set.copyOf(calls);
    }
    made.forEach(Stop::cancel);
  }

  private static void cancel(ClientCall<?, ?> call) {
    call.cancel("what it was made for is over", null);
  }

  boolean isStopped() {
    return stopped.getCount() == 0;
  }

  /** True as soon as it is stopped, false after so many nanoseconds. */
  boolean await(long nanos) throws InterruptedException {
    return stopped.await(nanos, TimeUnit.NANOSECONDS);
  }

  /** Adds a call, which is cancelled by the stop, at once if that was before. */
  void add(ClientCall<?, ?> call) {
    synchronized (calls) {
      calls.add(call);
    }
    if (isStopped()) {
      cancel(call);
    }
  }

  void remove(ClientCall<?, ?> call) {
    synchronized (calls) {
      calls.remove(call);
    }
  }
}
