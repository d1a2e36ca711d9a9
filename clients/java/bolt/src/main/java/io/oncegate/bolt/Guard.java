package io.oncegate.bolt;

import com.slack.api.bolt.request.Request;
import io.oncegate.Delivery;
import io.oncegate.Gate;
import io.oncegate.TurnRequest;
import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.time.Duration;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.SynchronousQueue;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

/** What the deliveries of an app share. */
final class Guard {
  static final Logger LOG = System.getLogger("oncegate");

  /** How many deliveries may run or wait after their acknowledgement; each is a thread. More are refused. */
  private static final int MOST_ACKNOWLEDGED = 256;

  final Gate gate;
  final GuardOptions options;
  private final ThreadPoolExecutor threads;
  private final Object lock = new Object();

  /** Deliveries that run, those that wait included. Guarded by lock. */
  private int running;

  Guard(Gate gate, GuardOptions options) {
    this.gate = gate;
    this.options = options;
    AtomicInteger count = new AtomicInteger();
    threads =
        new ThreadPoolExecutor(
            0,
            MOST_ACKNOWLEDGED,
            5,
            TimeUnit.SECONDS,
            new SynchronousQueue<>(),
            work -> {
              Thread thread = new Thread(work, "oncegate-bolt-" + count.incrementAndGet());
              thread.setDaemon(true);
              return thread;
            });
  }

  TurnRequest ask(Delivery delivery) {
    return options.turns.apply(gate.turn(delivery));
  }

  boolean acksFirst(Request<?> request) {
    return options.ackFirst.contains(request.getRequestType());
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

  /** Runs something in a thread of its own. False: there are too many. */
  boolean spawn(Runnable work) {
    begun();
    try {
      threads.execute(
          () -> {
            try {
              work.run();
            } catch (RuntimeException | Error e) {
              LOG.log(Level.ERROR, "a delivery of Slack was acknowledged, but not handled", e);
            } finally {
              ended();
            }
          });
      return true;
    } catch (Error e) { // such as no memory for a thread
      ended();
      throw e;
    } catch (RejectedExecutionException e) {
      ended();
      LOG.log(
          Level.ERROR,
          MOST_ACKNOWLEDGED + " deliveries of Slack run or wait after their acknowledgement; another one was refused");
      return false;
    }
  }

  /** Waits for the deliveries that run or wait. False if some still do after that time. */
  boolean join(Duration atMost) throws InterruptedException {
    long until = System.nanoTime() + atMost.toNanos();
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
}
