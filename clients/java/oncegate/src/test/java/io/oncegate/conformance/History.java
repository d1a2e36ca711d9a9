package io.oncegate.conformance;

import io.oncegate.GaveUpException;
import io.oncegate.Outcome;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.function.BiConsumer;
import org.jspecify.annotations.Nullable;

/** What happened in random runs. Times are those of {@link System#nanoTime}, differences in nanoseconds. */
final class History {
  /** How long the library may read what came in time while it was held up. */
  static final long SETTLE_TIME = TimeUnit.MILLISECONDS.toNanos(500);

  /** A pulse that is later than this has stood still. */
  private static final long LATE_BEAT = TimeUnit.MILLISECONDS.toNanos(40);

  private static final long BEAT = TimeUnit.MILLISECONDS.toNanos(20);

  final long margin;
  final int maxAttempts;
  final List<Integer> planned = new ArrayList<>();
  final List<Body> bodies = new ArrayList<>();
  final List<Answer> answers = new ArrayList<>();
  final List<Forced> forced = new ArrayList<>();

  /** They do not overlap: one pulse records them. */
  final List<Pause> pauses = new ArrayList<>();

  /** The events as the server has them at the end. */
  final Map<String, Map<String, Object>> records = new HashMap<>();

  History(Duration ttl, int maxAttempts) {
    margin = ttl.toNanos() / 10;
    this.maxAttempts = maxAttempts;
  }

  /** A write of a body, after a check that passed: when the check began, and the trusted end, read after it. */
  record Write(long checked, long trusted) {}

  /** This process stood still, as one of the faults, or because other processes ran. */
  record Pause(long began, long ended) {}

  /** A session was released by force, which raised its fence. The next holds may have raised it further since. */
  record Forced(String session, long before, long after) {}

  /** A handler's body. */
  static final class Body {
    final int run;
    final String event;
    final String session;

    /** It checks before each write. Else it relies on the library's interruption. */
    final boolean checks;

    final int attempt;
    final long fence;
    final long entered;
    final long trustedAtEntry;
    final List<Write> writes = new ArrayList<>();

    /** When its last statement ran, and its trusted end then. */
    long left;

    long trusted;

    /** By what it was kept then, and why it was lost. */
    String kept = "";

    Body(Plan plan, int attempt, long fence, long entered, long trustedAtEntry) {
      run = plan.run();
      event = plan.event();
      session = plan.session();
      checks = plan.checks();
      this.attempt = attempt;
      this.fence = fence;
      this.entered = entered;
      this.trustedAtEntry = trustedAtEntry;
    }
  }

  /** What one delivery of an event came to: an outcome, or an exception. */
  record Answer(int run, String event, @Nullable Outcome<String> outcome, @Nullable Throwable problem, long at) {
    boolean isRan() {
      return outcome instanceof Outcome.Ran;
    }

    boolean isDuplicate() {
      return outcome instanceof Outcome.Duplicate;
    }

    boolean isGivenUp() {
      return outcome instanceof Outcome.GaveUp;
    }

    /** Nobody need handle the event any more. */
    boolean isSettled() {
      return isRan() || isDuplicate() || isGivenUp();
    }

    /** There was no turn, as is to be expected. */
    boolean isRefused() {
      return outcome != null && !isRan();
    }

    @Nullable String value() {
      if (outcome instanceof Outcome.Ran<String> ran) {
        return ran.value();
      }
      return outcome instanceof Outcome.Duplicate<String> duplicate ? duplicate.result() : null;
    }

    String kind() {
      if (outcome != null) {
        return outcome.getClass().getSimpleName();
      }
      return (String) Mapping.error(problem).get("kind");
    }
  }

  synchronized void note(Runnable note) {
    note.run();
  }

  /** Records when the process stands still, until what it returns is closed. */
  AutoCloseable beat() {
    CountDownLatch done = new CountDownLatch(1);
    Thread pulse =
        new Thread(
            () -> {
              boolean ended = false;
              while (!ended) {
                long due = System.nanoTime() + BEAT;
                try {
                  ended = done.await(BEAT, TimeUnit.NANOSECONDS);
                } catch (InterruptedException e) {
                  throw new AssertionError(e);
                }
                long now = System.nanoTime();
                if (now - due > LATE_BEAT) {
                  note(() -> pauses.add(new Pause(due, now)));
                }
              }
            });
    pulse.setPriority(Thread.MAX_PRIORITY);
    pulse.start();
    return () -> {
      done.countDown();
      pulse.join();
    };
  }

  /** How much of this time the process did not stand still. */
  long awake(long since, long until) {
    long awake = until - since;
    for (Pause pause : pauses) {
      awake -= Math.max(0, Math.min(pause.ended(), until) - Math.max(pause.began(), since));
    }
    return awake;
  }

  /**
   * A session was released by force between the grants of two holds, as far as the fences say. The release can overtake a
   * grant that is on its way.
   */
  boolean isForced(Body one, Body other) {
    long low = Math.min(one.fence, other.fence);
    long high = Math.max(one.fence, other.fence);
    return low != high
        && forced.stream()
            .anyMatch(f -> f.session().equals(one.session) && f.before() < high && low < f.after());
  }

  /** Each body of a session with each that was entered later. */
  void pairs(BiConsumer<Body, Body> each) {
    List<Body> ordered = new ArrayList<>(bodies);
    ordered.sort(Comparator.comparingLong(body -> body.entered));
    for (int i = 0; i < ordered.size(); i++) {
      for (Body before : ordered.subList(0, i)) {
        if (before.session.equals(ordered.get(i).session)) {
          each.accept(before, ordered.get(i));
        }
      }
    }
  }

  Map<String, Answer> lastAnswers() {
    Map<String, Answer> last = new LinkedHashMap<>();
    answers.forEach(answer -> last.put(answer.event(), answer));
    return last;
  }

  static int attemptsOf(Answer answer) {
    if (answer.outcome() instanceof Outcome.GaveUp<?> gaveUp) {
      return gaveUp.attempts();
    }
    return answer.problem() instanceof GaveUpException e ? e.attempts() : 0;
  }
}
