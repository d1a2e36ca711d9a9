package io.oncegate.bolt;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.slack.api.bolt.context.Context;
import com.slack.api.bolt.response.Response;
import io.oncegate.Turn;
import java.io.IOException;
import java.time.Duration;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

/** Counts the runs of its handler, each of which does not end before it may. */
final class Bot {
  private static final long LIMIT = 60;

  private final AtomicInteger runs = new AtomicInteger();
  private final BlockingQueue<Turn> entered = new LinkedBlockingQueue<>();
  private final BlockingQueue<End> ends = new LinkedBlockingQueue<>();

  /** How a run ends. */
  interface End {
    Response of(Context context) throws IOException;
  }

  Response handle(Context context) throws IOException {
    runs.incrementAndGet();
    entered.add(turnOf(context));
    return next(ends).of(context);
  }

  private static Turn turnOf(Context context) {
    Turn turn = Turns.of(context);
    assertNotNull(turn, "the handler has no turn");
    return turn;
  }

  private static <T> T next(BlockingQueue<T> queue) throws IOException {
    try {
      T next = queue.poll(LIMIT, TimeUnit.SECONDS);
      if (next == null) {
        throw new IOException("nothing came");
      }
      return next;
    } catch (InterruptedException e) {
      throw new IOException("interrupted", e);
    }
  }

  /** Waits for the next run, and returns its turn. */
  Turn entered() throws IOException {
    return next(entered);
  }

  /** Lets a run end. */
  void leave(End end) {
    ends.add(end);
  }

  void leave() {
    leave(Context::ack);
  }

  void ran(int times) {
    assertEquals(times, runs.get(), "runs");
  }

  static void join(GuardedApp app) throws InterruptedException {
    assertTrue(app.join(Duration.ofSeconds(LIMIT)), "deliveries still run");
  }
}
