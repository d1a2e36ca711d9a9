package io.oncegate.conformance;

import io.oncegate.OutcomeUnknownException;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import java.util.stream.Collectors;

/** The rules of a history, by their names in planted.json. */
final class Rules {
  /** Reports what breaks it. */
  private interface Rule {
    void check(History history, Consumer<String> report);
  }

  private static final Map<String, Rule> ALL = new LinkedHashMap<>();

  static {
    ALL.put("each-run-has-one-answer", Rules::eachRunHasOneAnswer);
    ALL.put("one-success", Rules::oneSuccess);
    ALL.put("duplicates-replay-the-success", Rules::duplicatesReplayTheSuccess);
    ALL.put("no-entry-once-settled", Rules::noEntryOnceSettled);
    ALL.put("a-refused-run-has-no-body", Rules::refusedRunHasNoBody);
    ALL.put("given-up-after-failures", Rules::givenUpAfterFailures);
    ALL.put("the-server-has-the-answers", Rules::theServerHasTheAnswers);
    ALL.put("fences-rise", Rules::fencesRise);
    ALL.put("no-entry-after-the-end", Rules::noEntryAfterTheEnd);
    ALL.put("no-write-after-the-end", Rules::noWriteAfterTheEnd);
    ALL.put("a-loss-interrupts", Rules::lossInterrupts);
    ALL.put("no-two-bodies", Rules::noTwoBodies);
    ALL.put("all-events-settle", Rules::allEventsSettle);
  }

  private Rules() {}

  /** What breaks a rule, each with the rule's name. */
  static List<String> broken(History history) {
    List<String> found = new ArrayList<>();
    ALL.forEach((name, rule) -> rule.check(history, what -> found.add(name + ": " + what)));
    return found;
  }

  private static String millis(long nanos) {
    return TimeUnit.NANOSECONDS.toMillis(nanos) + " ms";
  }

  /** A run ends with an outcome, or with an error of the library's or of the handler's own. */
  private static void eachRunHasOneAnswer(History history, Consumer<String> report) {
    Map<Integer, Long> counts =
        history.answers.stream().collect(Collectors.groupingBy(History.Answer::run, Collectors.counting()));
    for (int run : history.planned) {
      if (counts.getOrDefault(run, 0L) != 1) {
        report.accept("run " + run + " has " + counts.getOrDefault(run, 0L) + " answers");
      }
    }
    for (History.Answer answer : history.answers) {
      if (answer.problem() != null && Set.of("unexpected", "cancelled").contains(answer.kind())) {
        report.accept("run " + answer.run() + " ended with " + answer.problem());
      }
    }
  }

  /** An event succeeds once at most. */
  private static void oneSuccess(History history, Consumer<String> report) {
    Map<String, Integer> succeeded = new HashMap<>();
    for (History.Answer answer : history.answers) {
      if (answer.isRan()) {
        Integer before = succeeded.put(answer.event(), answer.run());
        if (before != null) {
          report.accept(answer.event() + " succeeded in run " + before + " and " + answer.run());
        }
      }
    }
  }

  /** A duplicate gets the value of the run that succeeded, or whose outcome is unknown. */
  private static void duplicatesReplayTheSuccess(History history, Consumer<String> report) {
    byEvent(history)
        .forEach(
            (event, group) -> {
              Set<String> values = new HashSet<>();
              Set<String> possible = new HashSet<>();
              for (History.Answer answer : group) {
                if (answer.problem() instanceof OutcomeUnknownException unknown) {
                  possible.add((String) unknown.value());
                }
                if (answer.isRan()) {
                  possible.add(answer.value());
                }
                if (answer.isRan() || answer.isDuplicate()) {
                  values.add(answer.value());
                }
              }
              if (values.size() > 1) {
                report.accept(event + " has several results: " + values);
              }
              values.removeAll(possible);
              values.forEach(value -> report.accept(event + " has a result that no run ended with: " + value));
            });
  }

  private static Map<String, List<History.Answer>> byEvent(History history) {
    return history.answers.stream().collect(Collectors.groupingBy(History.Answer::event));
  }

  /** Once an event is settled, as a caller has been answered, no body of it begins. */
  private static void noEntryOnceSettled(History history, Consumer<String> report) {
    Map<String, Long> settled = new HashMap<>();
    for (History.Answer answer : history.answers) {
      if (answer.isSettled()) {
        settled.merge(answer.event(), answer.at(), Math::min);
      }
    }
    for (History.Body body : history.bodies) {
      Long at = settled.get(body.event);
      if (at != null && body.entered > at) {
        report.accept(body.event + ": run " + body.run + " entered although it was settled");
      }
    }
  }

  /** A run that is refused, as a duplicate or otherwise, has no body; a run that succeeded has one. */
  private static void refusedRunHasNoBody(History history, Consumer<String> report) {
    Map<Integer, Long> counts =
        history.bodies.stream().collect(Collectors.groupingBy(body -> body.run, Collectors.counting()));
    for (History.Answer answer : history.answers) {
      long count = counts.getOrDefault(answer.run(), 0L);
      if (answer.isRefused() && count > 0 || answer.isRan() && count != 1 || count > 1) {
        report.accept("run " + answer.run() + " ended with " + answer.kind() + " after " + count + " bodies");
      }
    }
  }

  /** An event is given up when all its attempts have failed, or were lost: some before a body. */
  private static void givenUpAfterFailures(History history, Consumer<String> report) {
    byEvent(history)
        .forEach(
            (event, group) -> {
              long attempts =
                  history.bodies.stream()
                      .filter(body -> body.event.equals(event))
                      .map(body -> body.attempt)
                      .distinct()
                      .count();
              long failures = 0;
              for (History.Answer answer : group) {
                if (answer.isGivenUp()) {
                  int given = History.attemptsOf(answer);
                  long ended = failures + given - attempts;
                  if (Math.min(ended, given) < history.maxAttempts) {
                    report.accept(event + " was given up after " + failures + " failures");
                  }
                }
                if (answer.problem() != null) {
                  failures++;
                }
              }
            });
  }

  /** The record of an event has the outcome and the result that its callers got. */
  private static void theServerHasTheAnswers(History history, Consumer<String> report) {
    for (History.Answer answer : history.answers) {
      if (!answer.isSettled()) {
        continue;
      }
      Map<String, Object> expected =
          Json.of(
              "state",
              "PROCESSED",
              "outcome",
              answer.isGivenUp() ? "GAVE_UP" : "SUCCEEDED",
              "result",
              answer.value());
      Map<String, Object> record = history.records.get(answer.event());
      expected.forEach(
          (key, value) -> {
            if (!Expectations.same(value, record.get(key))) {
              report.accept(
                  answer.event()
                      + " has the "
                      + key
                      + " "
                      + record.get(key)
                      + ", run "
                      + answer.run()
                      + " was answered "
                      + value);
            }
          });
    }
  }

  /** The holds of a session are entered in the order of their fences. */
  private static void fencesRise(History history, Consumer<String> report) {
    history.pairs(
        (before, after) -> {
          if (after.fence <= before.fence && !history.isForced(before, after)) {
            report.accept(
                String.format(
                    "%s: run %d entered with fence %d, after run %d with fence %d",
                    after.session, after.run, after.fence, before.run, before.fence));
          }
        });
  }

  /**
   * A body does not begin after its trusted end. The margin is for what lies between the library's look at the clock and
   * the body's own.
   */
  private static void noEntryAfterTheEnd(History history, Consumer<String> report) {
    for (History.Body body : history.bodies) {
      if (body.entered < body.trustedAtEntry) {
        continue;
      }
      long late = history.awake(body.trustedAtEntry, body.entered);
      if (late > history.margin) {
        report.accept(body.event + ": run " + body.run + " entered " + millis(late) + " after its trusted end");
      }
    }
  }

  /** A check that begins after the trusted end does not pass. */
  private static void noWriteAfterTheEnd(History history, Consumer<String> report) {
    for (History.Body body : history.bodies) {
      for (History.Write write : body.writes) {
        if (write.checked() > write.trusted()) {
          report.accept(
              body.event
                  + ": run "
                  + body.run
                  + " wrote "
                  + millis(write.checked() - write.trusted())
                  + " after its trusted end");
        }
      }
    }
  }

  /** A body that relies on it is interrupted at its trusted end, or before. */
  private static void lossInterrupts(History history, Consumer<String> report) {
    for (History.Body body : history.bodies) {
      if (body.checks || body.left < body.trusted) {
        continue;
      }
      long late = history.awake(body.trusted, body.left);
      if (late > history.margin + History.SETTLE_TIME) {
        report.accept(
            body.event + ": run " + body.run + " went on for " + millis(late) + " after its trusted end");
      }
    }
  }

  /**
   * Within their trusted ends, the bodies of a session do not overlap, unless an operator has released the session by
   * force.
   */
  private static void noTwoBodies(History history, Consumer<String> report) {
    history.pairs(
        (before, after) -> {
          // Until when it may have had effects, if its author calls check() before each.
          long stopped = Math.min(before.left, before.trusted);
          if (stopped > after.entered && !history.isForced(before, after)) {
            report.accept(
                String.format(
                    "%s: run %d (fence %d) entered %s before run %d (fence %d, kept by %s) stopped",
                    after.session,
                    after.run,
                    after.fence,
                    millis(stopped - after.entered),
                    before.run,
                    before.fence,
                    before.kept));
          }
        });
  }

  /** Once the faults have stopped, the last answer for each event settles it. */
  private static void allEventsSettle(History history, Consumer<String> report) {
    history
        .lastAnswers()
        .forEach(
            (event, last) -> {
              if (!last.isSettled()) {
                report.accept(event + " is not settled; its last answer is " + last.kind() + ": " + last.problem());
              }
            });
  }
}
