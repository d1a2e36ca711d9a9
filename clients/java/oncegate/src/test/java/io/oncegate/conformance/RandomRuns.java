package io.oncegate.conformance;

import io.oncegate.Delivery;
import io.oncegate.Gate;
import io.oncegate.Outcome;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/**
 * Handlers of the same events in the same sessions, by several gates, while the server has random faults. It runs in a
 * process of its own, which the faults stop.
 */
final class RandomRuns {
  static final int MAX_ATTEMPTS = 4;
  private static final Duration TTL = Duration.ofSeconds(2);
  private static final int AT_ONCE = 48;

  /** On a busy machine. */
  private static final long SETTLE_LIMIT = TimeUnit.SECONDS.toNanos(240);

  /**
   * What is run.
   *
   * @param kinds the faults; all, if empty
   * @param faulty how many replicas have faults; all, if 0
   * @param settles whether what is not settled after the faults is delivered again
   */
  record Options(String store, int runs, long seed, List<String> kinds, int faulty, boolean settles) {}

  /** What happened in the runs, by kinds. */
  record Report(
      String title,
      int bodies,
      Map<String, Integer> answers,
      Map<String, Integer> faults,
      int forced,
      List<String> broken) {
    static Report read(String written) {
      return Json.GSON.fromJson(written, Report.class);
    }

    boolean breaks(String rule) {
      return broken.stream().anyMatch(problem -> problem.startsWith(rule + ": "));
    }
  }

  private final Options options;
  private final Testbed testbed;
  private final History history = new History(TTL, MAX_ATTEMPTS);

  private RandomRuns(Options options, Testbed testbed) {
    this.options = options;
    this.testbed = testbed;
  }

  /** Runs what options in JSON say, and returns the report in JSON. */
  static String report(String options) throws Exception {
    return Json.GSON.toJson(run(Json.GSON.fromJson(options, Options.class)));
  }

  private static Report run(Options options) throws Exception {
    int replicas = options.store().equals("postgres") ? 2 : 1;
    try (Testbed testbed = Testbed.start(options.store(), replicas, List.of())) {
      try {
        return new RandomRuns(options, testbed).report();
      } catch (Exception e) {
        throw new IllegalStateException(e + "\nlog of the server:\n" + testbed.log(), e);
      }
    }
  }

  private Report report() throws Exception {
    long began = System.nanoTime();
    List<Plan> plans = Plan.many(options.runs(), new Random(options.seed()));
    List<String> kinds = options.kinds().isEmpty() ? Faults.all() : options.kinds();
    int faulty = options.faulty() == 0 ? testbed.replicas.size() : options.faulty();
    List<String> faults =
        Faults.during(testbed, options.seed(), history, kinds, faulty, () -> deliver(plans));
    if (options.settles()) {
      settle(plans.size());
    }
    for (String event : history.lastAnswers().keySet()) {
      history.records.put(
          event, Json.object(testbed.ask("look", Json.of("team", Faults.TEAM, "event", event))));
    }
    Map<String, Integer> answers = new TreeMap<>();
    history.answers.forEach(answer -> answers.merge(answer.kind(), 1, Integer::sum));
    Map<String, Integer> done = new TreeMap<>();
    faults.forEach(kind -> done.merge(kind, 1, Integer::sum));
    long seconds = TimeUnit.NANOSECONDS.toSeconds(System.nanoTime() - began);
    return new Report(
        options.store() + ", seed " + options.seed() + ", " + seconds + " s",
        history.bodies.size(),
        answers,
        done,
        history.forced.size(),
        Rules.broken(history));
  }

  /** Runs the plans, so many at once. */
  private void deliver(List<Plan> plans) throws Exception {
    List<Gate> gates = new ArrayList<>();
    BlockingQueue<Plan> next = new LinkedBlockingQueue<>(plans);
    try (AutoCloseable beat = history.beat()) {
      for (int i = 0; i < Plan.GATES; i++) {
        gates.add(
            Gate.builder()
                .server(testbed.replicas.get(i % testbed.replicas.size()))
                .holder("gate-" + i)
                .ttl(TTL)
                .grace(TTL.dividedBy(2))
                .patience(Duration.ofMillis(2500))
                .maxAttempts(MAX_ATTEMPTS)
                .logger(new QuietLogger())
                .build());
      }
      plans.forEach(plan -> history.planned.add(plan.run()));
      List<Thread> workers = new ArrayList<>();
      for (int i = 0; i < AT_ONCE; i++) {
        Thread worker =
            new Thread(
                () -> {
                  for (Plan plan = next.poll(); plan != null; plan = next.poll()) {
                    deliver(plan, gates.get(plan.gate()));
                  }
                });
        worker.start();
        workers.add(worker);
      }
      for (Thread worker : workers) {
        worker.join();
      }
    } finally {
      gates.forEach(Gate::close);
    }
  }

  private void deliver(Plan plan, Gate gate) {
    Outcome<String> outcome = null;
    Throwable problem = null;
    try {
      outcome =
          gate.turn(Delivery.of(Faults.TEAM, plan.event()).session(plan.session()))
              .waitFor(plan.queues())
              .run(String.class, turn -> plan.handle(turn, history));
    } catch (Exception | Error e) {
      problem = e;
    }
    History.Answer answer = new History.Answer(plan.run(), plan.event(), outcome, problem, System.nanoTime());
    boolean isStillInterrupted = Thread.interrupted(); // the interruption of a loss is taken back
    history.note(
        () -> {
          history.answers.add(
              isStillInterrupted
                  ? new History.Answer(
                      plan.run(), plan.event(), null, new IllegalStateException("still interrupted"), answer.at())
                  : answer);
        });
  }

  /** Delivers what is not settled again and again, as senders do. */
  private void settle(int runs) throws Exception {
    Random chance = new Random(runs);
    long deadline = System.nanoTime() + SETTLE_LIMIT;
    while (System.nanoTime() < deadline) {
      List<Plan> plans = new ArrayList<>();
      for (History.Answer last : history.lastAnswers().values()) {
        if (!last.isSettled()) {
          int event = Integer.parseInt(last.event().substring("event-".length()));
          plans.add(Plan.of(runs + plans.size(), event, chance));
        }
      }
      if (plans.isEmpty()) {
        return;
      }
      runs += plans.size();
      deliver(plans);
    }
  }
}
