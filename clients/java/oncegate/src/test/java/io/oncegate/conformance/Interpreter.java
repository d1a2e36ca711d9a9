package io.oncegate.conformance;

import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import org.jspecify.annotations.Nullable;

/** Executes the steps of a scenario. */
final class Interpreter implements AutoCloseable {
  private static final long DEFAULT_WITHIN = 15_000;
  private static final long POLL_EVERY = 30;
  private static final Set<String> REFUSALS =
      Set.of("error", "duplicate", "gave_up", "in_progress", "busy", "dropped");

  private final Scenario scenario;
  private final Testbed testbed;
  private final Map<String, Client> clients = new HashMap<>();
  private final Map<String, Running> background = new HashMap<>();
  private final Map<String, Object> turnIds = new HashMap<>(); // of the turns that were detached
  private final Expectations expectations = new Expectations();

  /** A step that has been started. */
  private record Running(Map<String, Object> step, long started, CompletableFuture<Done> done) {}

  /** A result, and how many milliseconds it took. */
  private record Done(@Nullable Object result, long took) {}

  Interpreter(Scenario scenario, Testbed testbed) {
    this.scenario = scenario;
    this.testbed = testbed;
  }

  @Override
  public void close() throws Exception {
    for (Client client : clients.values()) {
      client.close();
    }
  }

  void run() throws StepFailed {
    for (int i = 0; i < scenario.steps().size(); i++) {
      Map<String, Object> step = Json.object(scenario.steps().get(i));
      try {
        step(step);
      } catch (Exception e) {
        String problem = e instanceof Mismatch ? e.getMessage() : e.toString();
        throw new StepFailed("step " + (i + 1) + ": " + Json.shown(step) + "\n" + problem, e);
      }
    }
    if (!background.isEmpty()) {
      throw new StepFailed("no step awaits " + background.keySet(), new IllegalStateException());
    }
  }

  private void step(Map<String, Object> step) throws Exception {
    if (step.containsKey("sleep_ms")) {
      Thread.sleep(Json.number(step.get("sleep_ms")));
    } else if (step.get("await") instanceof String name) {
      Running running = background.remove(name);
      if (running == null) {
        throw new IllegalStateException("nothing runs as " + name);
      }
      finish(running, step);
    } else if (Boolean.TRUE.equals(step.get("background"))) {
      background.put((String) step.get("as"), start(step));
    } else if (step.containsKey("expect") && step.containsKey("within_ms") && isLook(step)) {
      poll(step);
    } else {
      finish(start(step), step);
    }
  }

  /** Repeats a look until it matches. A server that is down may not answer. */
  private void poll(Map<String, Object> step) throws Exception {
    long deadline = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(Json.number(step.get("within_ms")));
    while (true) {
      try {
        finish(start(step), step);
        return;
      } catch (Mismatch | LineProcess.Refusal e) {
        if (System.nanoTime() > deadline) {
          throw e;
        }
      }
      Thread.sleep(POLL_EVERY);
    }
  }

  /** What does a step. */
  private interface Work {
    @Nullable Object run() throws Exception;
  }

  private Running start(Map<String, Object> step) throws Exception {
    Work work = prepared(step);
    long started = System.nanoTime();
    CompletableFuture<Done> done = new CompletableFuture<>();
    Thread thread =
        new Thread(
            () -> {
              try {
                Object result = work.run();
                done.complete(new Done(result, TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - started)));
              } catch (Throwable e) {
                done.completeExceptionally(e);
              }
            });
    thread.setDaemon(true);
    thread.start();
    return new Running(step, started, done);
  }

  private void finish(Running running, Map<String, Object> step) throws Exception {
    boolean isGiven = step.containsKey("within_ms");
    long within = isGiven ? Json.number(step.get("within_ms")) : DEFAULT_WITHIN;
    long left = running.started() + TimeUnit.MILLISECONDS.toNanos(within) - System.nanoTime();
    Done done;
    try {
      done = running.done().get(Math.max(0, left), TimeUnit.NANOSECONDS);
    } catch (TimeoutException e) {
      throw late(isGiven, "not finished after " + within + " ms");
    } catch (ExecutionException e) {
      throw e.getCause() instanceof Exception cause ? cause : e;
    }
    if (running.step().get("detach") instanceof String name && done.result() instanceof Map) {
      turnIds.put(name, Json.object(done.result()).get("turn_id"));
    }
    if (done.took() > within) {
      throw late(isGiven, "finished after " + done.took() + " ms, expected within " + within);
    }
    long atLeast = Json.number(step.get("at_least_ms"));
    if (done.took() < atLeast) {
      throw new Mismatch(
          "finished after " + done.took() + " ms with " + Json.shown(done.result()) + ", expected " + atLeast);
    }
    if (step.containsKey("expect")) {
      try {
        expectations.match(step.get("expect"), done.result());
      } catch (Mismatch e) {
        throw new Mismatch(e.getMessage().replace("Mismatch: ", "") + "\nof " + Json.shown(done.result()));
      }
    } else if (!isSuccess(running.step(), done.result())) {
      throw new Mismatch("the result is " + Json.shown(done.result()));
    }
  }

  /** A time that the scenario gives is a part of what it expects. */
  private static Exception late(boolean isGiven, String problem) {
    return isGiven ? new Mismatch(problem) : new TimeoutException(problem);
  }

  /** What does a step. The client of the step is made if it is its first one. */
  private Work prepared(Map<String, Object> step) throws Exception {
    Map<String, Object> verb = new LinkedHashMap<>(step);
    List.of("expect", "within_ms", "at_least_ms", "background", "client", "testbed").forEach(verb::remove);
    if (step.get("testbed") instanceof String command) {
      return () -> testbed.ask(command, verb);
    }
    for (String key : List.of("delivery", "run", "once", "mark", "seen")) {
      if (verb.get(key) instanceof String name) {
        verb.put(key, scenario.deliveries().get(name));
      }
    }
    if (verb.get("adopt") instanceof String name) {
      verb.put("adopt", turnIds.get(name));
    }
    Client client = client((String) step.get("client"));
    return () -> client.perform(verb);
  }

  private Client client(String name) throws Exception {
    Client client = clients.get(name);
    if (client == null) {
      Map<String, Object> options = Json.of("ttl_ms", 3000L);
      if (scenario.clients().containsKey(name)) {
        options.putAll(Json.object(scenario.clients().get(name)));
      }
      String server = testbed.replicas.get(Json.number(options.get("replica")));
      client =
          Boolean.TRUE.equals(options.get("own_process"))
              ? new ChildClient(name, server, options)
              : new LocalClient(name, server, options);
      clients.put(name, client);
    }
    return client;
  }

  private static boolean isLook(Map<String, Object> step) {
    return step.containsKey("state")
        || step.containsKey("hooks")
        || step.containsKey("seen")
        || "look".equals(step.get("testbed"))
        || "calls".equals(step.get("testbed"));
  }

  /** A step without expect went well. What a look reports is data. */
  private static boolean isSuccess(Map<String, Object> step, @Nullable Object result) {
    return isLook(step)
        || !(result instanceof Map)
        || Json.object(result).keySet().stream().noneMatch(REFUSALS::contains);
  }
}
