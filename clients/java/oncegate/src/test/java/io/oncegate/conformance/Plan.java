package io.oncegate.conformance;

import io.oncegate.Turn;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Random;
import java.util.concurrent.TimeUnit;

/** One delivery of the random runs, and what its handler does. */
record Plan(
    int run, String event, String session, int gate, Duration queues, int slices, boolean checks, boolean fails) {

  static final int DELIVERIES_OF_EVENT = 3;
  static final int GATES = 6;
  static final int SESSIONS = 12;
  private static final long SLICE = TimeUnit.MILLISECONDS.toNanos(50);

  /** Of so many events, one fails always. */
  private static final int HOPELESS = 50;

  static Plan of(int run, int event, Random chance) {
    return new Plan(
        run,
        "event-" + event,
        "session-" + event % SESSIONS,
        chance.nextInt(GATES),
        Duration.ofSeconds(List.of(0, 2, 5).get(chance.nextInt(3))),
        List.of(0, 1, 5, 50).get(chance.nextInt(4)),
        chance.nextBoolean(),
        chance.nextInt(10) == 0 || event % HOPELESS == 0);
  }

  /** Deliveries in a random order that keeps those of an event near each other. */
  static List<Plan> many(int runs, Random chance) {
    record Place(int event, double at) {}
    List<Place> places = new ArrayList<>();
    for (int i = 0; i < runs; i++) {
      int event = i / DELIVERIES_OF_EVENT;
      places.add(new Place(event, event + 30 * chance.nextDouble()));
    }
    places.sort(Comparator.comparingDouble(Place::at));
    List<Plan> plans = new ArrayList<>();
    for (int run = 0; run < runs; run++) {
      plans.add(of(run, places.get(run).event(), chance));
    }
    return plans;
  }

  /** The trusted end; read anew if time passed between its two readings. */
  private static long trustedEnd(Turn turn) {
    while (true) {
      long before = System.nanoTime();
      Duration left = turn.left();
      long now = System.nanoTime();
      if (now - before < TimeUnit.MILLISECONDS.toNanos(5)) {
        return now + left.toNanos();
      }
    }
  }

  String handle(Turn turn, History history) throws InterruptedException, Mapping.OwnError {
    long entered = System.nanoTime();
    History.Body body = new History.Body(this, turn.attempt(), turn.fence(), entered, trustedEnd(turn));
    try {
      for (int i = 0; i < slices; i++) {
        if (!checks) {
          TimeUnit.NANOSECONDS.sleep(SLICE);
          continue;
        }
        sleepOn();
        long checked = System.nanoTime();
        turn.check();
        body.writes.add(new History.Write(checked, trustedEnd(turn)));
      }
      if (fails) {
        throw new Mapping.OwnError("it fails");
      }
      return "run " + run;
    } finally {
      body.left = System.nanoTime();
      body.trusted = trustedEnd(turn);
      body.kept = turn.keptBy() + ", lost: " + turn.lostReason();
      history.note(() -> history.bodies.add(body));
    }
  }

  /** Ignores an interruption. */
  private static void sleepOn() {
    long end = System.nanoTime() + SLICE;
    while (System.nanoTime() < end) {
      try {
        TimeUnit.NANOSECONDS.sleep(end - System.nanoTime());
      } catch (InterruptedException e) {
        continue; // it checks instead
      }
    }
  }
}
