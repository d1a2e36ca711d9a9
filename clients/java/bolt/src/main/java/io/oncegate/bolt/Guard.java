package io.oncegate.bolt;

import com.slack.api.bolt.request.Request;
import io.oncegate.Delivery;
import io.oncegate.Gate;
import io.oncegate.TurnRequest;
import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.time.Duration;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.SynchronousQueue;
import java.util.concurrent.ThreadFactory;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicInteger;
import org.jspecify.annotations.Nullable;

/** What the deliveries of an app share. */
final class Guard {
  /** Sums of nanoseconds must not overflow. */
  private static final Duration LONGEST = Duration.ofDays(365);

  final Gate gate;
  final GuardOptions options;
  private final Logger logger;

  /** One for all deliveries: the gate keeps each future that it makes until it closes. */
  private final CompletableFuture<Void> closing;

  private final ThreadPoolExecutor threads;
  private final Object lock = new Object();

  // Guarded by lock.
  /** Deliveries that run, those that wait included. */
  private int running;

  private boolean draining;

  Guard(Gate gate, GuardOptions options) {
    this(gate, options, daemons());
  }

  /** For tests. */
  Guard(Gate gate, GuardOptions options, ThreadFactory factory) {
    this.gate = gate;
    this.options = options;
    logger = gate.logger();
    closing = gate.closing();
    threads =
        new ThreadPoolExecutor(
            0, options.maxBackgroundDeliveries, 5, TimeUnit.SECONDS, new SynchronousQueue<>(), factory);
  }

  /** They inherit nothing of the delivery that happens to need one: others are handled in the same thread later. */
  private static ThreadFactory daemons() {
    AtomicInteger count = new AtomicInteger();
    ClassLoader loader = Thread.currentThread().getContextClassLoader(); // of the thread that makes the app
    return work -> {
      Thread thread = new Thread(null, work, "oncegate-bolt-" + count.incrementAndGet(), 0, false);
      thread.setDaemon(true);
      thread.setContextClassLoader(loader);
      return thread;
    };
  }

  TurnRequest ask(Delivery delivery) {
    return options.turns.apply(gate.turn(delivery));
  }

  boolean acksFirst(Request<?> request) {
    return options.ackFirst.contains(request.getRequestType());
  }

  void log(Level level, String message, @Nullable Throwable problem) {
    logger.log(level, message, problem);
  }

  void begun() {
    synchronized (lock) {
      running++;
    }
  }

  void ended() {
    synchronized (lock) {
      running--;
      lock.notifyAll();
    }
  }

  /** Runs something in a thread of its own. False, and logged: no thread is left for it. */
  boolean spawn(Runnable work) {
    begun();
    try {
      threads.execute(
          () -> {
            try {
              work.run();
            } catch (RuntimeException | Error e) {
              log(Level.ERROR, "acknowledged delivery dropped: the guard failed", e);
            } finally {
              ended();
            }
          });
      return true;
    } catch (RejectedExecutionException e) {
      ended();
      log(
          Level.ERROR,
          "delivery refused: maxBackgroundDeliveries (" + options.maxBackgroundDeliveries + ") reached",
          null);
      return false;
    } catch (OutOfMemoryError e) {
      ended();
      log(Level.ERROR, "delivery refused: no thread can be made", e);
      return false;
    }
  }

  /** Waits, and returns early if the gate closes. */
  void pause(Duration pause) {
    try {
      closing.get(nanos(pause), TimeUnit.NANOSECONDS);
    } catch (TimeoutException | ExecutionException e) {
      // The pause is over.
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt(); // which ends the next request
    }
  }

  boolean isDraining() {
    synchronized (lock) {
      return draining;
    }
  }

  /** Refuses new deliveries from now on, and joins. */
  boolean drain(Duration atMost) throws InterruptedException {
    synchronized (lock) {
      draining = true;
    }
    return join(atMost);
  }

  /** Waits for the deliveries that run or wait. False if some still do after that time. */
  boolean join(Duration atMost) throws InterruptedException {
    long until = System.nanoTime() + nanos(atMost);
    synchronized (lock) {
      while (running > 0) {
        long left = until - System.nanoTime();
        if (left <= 0) {
          return false;
        }
        TimeUnit.NANOSECONDS.timedWait(lock, Math.max(left, TimeUnit.MILLISECONDS.toNanos(1)));
      }
      return true;
    }
  }

  /** At least 0, and at most a year. */
  static long nanos(Duration duration) {
    if (duration.isNegative()) {
      return 0;
    }
    return duration.compareTo(LONGEST) > 0 ? LONGEST.toNanos() : duration.toNanos();
  }
}
