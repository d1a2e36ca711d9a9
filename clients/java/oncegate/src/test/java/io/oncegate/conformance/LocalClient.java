package io.oncegate.conformance;

import io.oncegate.Delivery;
import io.oncegate.Gate;
import io.oncegate.Hold;
import io.oncegate.Hooks;
import io.oncegate.Lease;
import io.oncegate.LostException;
import io.oncegate.LostReason;
import io.oncegate.MarkItem;
import io.oncegate.OncegateException;
import io.oncegate.Outcome;
import io.oncegate.Seen;
import io.oncegate.Turn;
import java.time.LocalDate;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.SynchronousQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.jspecify.annotations.Nullable;

/** A client in this process. */
final class LocalClient implements Client {
  private final Gate gate;
  private final Called called = new Called();
  private final Map<String, Scope> scopes = new ConcurrentHashMap<>();
  private final ScheduledExecutorService timer = new ScheduledThreadPoolExecutor(1);

  LocalClient(String name, String server, Map<String, Object> options) {
    gate = Mapping.gate(name, server, options).hooks(called).build();
  }

  /** What the hooks of a gate were called with. */
  private static final class Called implements Hooks {
    private int begun;
    private final List<Object> queued = new ArrayList<>();
    private final List<Object> lost = new ArrayList<>();
    private final List<Object> ended = new ArrayList<>();

    @Override
    public synchronized void onBegin(Delivery delivery) {
      begun++;
    }

    @Override
    public synchronized void onQueued(int position) {
      queued.add(position);
    }

    @Override
    public synchronized void onLost(LostReason reason) {
      lost.add(reason.name());
    }

    @Override
    public synchronized void onEnd(String outcome) {
      ended.add(outcome);
    }

    synchronized Object report() {
      return Json.of(
          "begun", begun, "queued", List.copyOf(queued), "lost", List.copyOf(lost), "ended", List.copyOf(ended));
    }
  }

  /** What a step does in a thread of its own, which is interrupted to cancel it. */
  private interface Work {
    @Nullable Object run() throws Exception;
  }

  /** One open turn or lease. Its body waits for the step that ends it. */
  private final class Scope {
    final Map<String, Object> step;
    final SynchronousQueue<Map<String, Object>> ending = new SynchronousQueue<>();
    final CompletableFuture<Object> entered = new CompletableFuture<>();
    final CompletableFuture<Object> left = new CompletableFuture<>();
    volatile @Nullable Thread thread;
    volatile @Nullable Hold held;
    volatile boolean interrupted;

    Scope(Map<String, Object> step) {
      this.step = step;
    }

    void start(Work work) {
      thread = LocalClient.this.start(step, work, left);
    }

    /** Waits for the step that ends it, or for an interruption. */
    @Nullable Object body(Hold granted) throws InterruptedException, Mapping.OwnError {
      held = granted;
      entered.complete(Mapping.granted(granted));
      while (true) {
        try {
          return Mapping.bodyOf(ending.take());
        } catch (InterruptedException e) {
          interrupted = true;
          if (!Boolean.TRUE.equals(step.get("ignores_loss"))) {
            throw e;
          }
        }
      }
    }

    /** Makes the body return, and waits for what comes of it. */
    Object end(Map<String, Object> how) throws Exception {
      if (Boolean.TRUE.equals(how.get("cancel"))) {
        thread.interrupt();
      } else {
        while (!left.isDone() && !ending.offer(how, 10, TimeUnit.MILLISECONDS)) {
          continue; // a body that was interrupted takes nothing
        }
      }
      return left.get();
    }

    Hold held() throws Exception {
      return (Hold) java.util.Objects.requireNonNull(held, "it was not granted");
    }

    Object state() throws Exception {
      return Mapping.state(held(), interrupted && held().lostReason() != null);
    }
  }

  private Thread start(Map<String, Object> step, Work work, CompletableFuture<Object> done) {
    Thread thread =
        new Thread(
            () -> {
              try {
                done.complete(work.run());
              } catch (Throwable e) {
                done.complete(Mapping.failed(e));
              }
            });
    thread.setDaemon(true);
    thread.start();
    if (step.containsKey("timeout_ms")) {
      timer.schedule(
          () -> {
            if (!done.isDone()) {
              thread.interrupt();
            }
          },
          Json.number(step.get("timeout_ms")),
          TimeUnit.MILLISECONDS);
    }
    return thread;
  }

  /** Runs something in a thread that the step's timeout may interrupt. */
  private Object inThread(Map<String, Object> step, Work work) throws Exception {
    CompletableFuture<Object> done = new CompletableFuture<>();
    start(step, work, done);
    return done.get();
  }

  @Override
  public void close() throws Exception {
    for (Scope scope : scopes.values()) {
      while (!scope.left.isDone() && !scope.ending.offer(Map.of(), 10, TimeUnit.MILLISECONDS)) {
        scope.thread.interrupt();
      }
      scope.left.get();
    }
    gate.close();
    timer.shutdownNow();
  }

  private Scope scope(Map<String, Object> step, String verb) {
    return scopes.get((String) step.get(verb));
  }

  @Override
  public @Nullable Object perform(Map<String, Object> step) throws Exception {
    if ("turn".equals(step.get("open"))) {
      return open(step, this::turn);
    } else if ("lease".equals(step.get("open"))) {
      return open(step, this::lease);
    } else if (step.containsKey("adopt")) {
      return open(step, this::adopt);
    } else if (step.containsKey("end")) {
      return scope(step, "end").end(step);
    } else if (step.containsKey("detach")) {
      return detach(scope(step, "detach"));
    } else if (step.containsKey("state")) {
      return scope(step, "state").state();
    } else if (step.containsKey("check")) {
      return check(scope(step, "check"));
    } else if (step.containsKey("run")) {
      return inThread(step, () -> run(step));
    } else if (step.containsKey("once")) {
      return inThread(step, () -> once(step));
    } else if (step.containsKey("mark")) {
      return inThread(
          step,
          () -> {
            MarkItem item = gate.mark(Mapping.delivery(step.get("mark")));
            return Json.of("first", item.first(), "event_id", item.eventId());
          });
    } else if (step.containsKey("seen")) {
      return inThread(step, () -> seen(step));
    } else if (step.containsKey("mark_all")) {
      return inThread(step, () -> markAll(step));
    } else if (step.containsKey("many")) {
      return many(step);
    } else if (step.containsKey("hooks")) {
      return called.report();
    } else if (step.containsKey("close")) {
      gate.close();
      return null;
    } else if (step.containsKey("drain_ms")) {
      gate.drain(Mapping.millis(step.get("drain_ms")));
      return null;
    }
    throw new IllegalArgumentException("no verb in " + step);
  }

  /** What is done in a scope. */
  private interface Body {
    @Nullable Object run(Scope scope) throws Exception;
  }

  private Object open(Map<String, Object> step, Body body) throws Exception {
    Scope scope = new Scope(step);
    scopes.put((String) step.get("as"), scope);
    scope.start(() -> body.run(scope));
    return CompletableFuture.anyOf(scope.entered, scope.left).get();
  }

  private Object turn(Scope scope) throws Exception {
    Outcome<Object> outcome =
        Mapping.turn(gate, scope.step.get("delivery"), scope.step).run(Object.class, scope::body);
    return Mapping.outcome(outcome);
  }

  private Object lease(Scope scope) throws Exception {
    try (Lease lease = Mapping.lease(gate, scope.step).acquire()) {
      Object result;
      try {
        result = scope.body(lease);
      } catch (InterruptedException e) {
        lease.release(); // which says that it was lost
        throw e;
      }
      lease.release();
      return Json.of("ran", Json.write(result));
    }
  }

  private Object adopt(Scope scope) throws Exception {
    try (Turn turn = gate.adopt(Json.text(scope.step.get("adopt")))) {
      Object result;
      try {
        result = scope.body(turn);
      } catch (InterruptedException e) {
        turn.check(); // which says that it was lost
        throw e;
      }
      turn.succeed(result);
      return Json.of("ran", Json.write(result));
    }
  }

  private static Object detach(Scope scope) throws Exception {
    String id;
    try {
      id = ((Turn) scope.held()).detach();
    } catch (OncegateException e) {
      return Mapping.failed(e);
    }
    Map<String, Object> result = Json.of("turn_id", id);
    result.putAll(Json.object(scope.end(Map.of())));
    return result;
  }

  private static Object check(Scope scope) throws Exception {
    try {
      scope.held().check();
      return Json.of("ok", true);
    } catch (LostException e) {
      return Mapping.failed(e);
    }
  }

  private Object run(Map<String, Object> step) throws Exception {
    Outcome<Object> outcome =
        Mapping.turn(gate, step.get("run"), step)
            .run(
                Object.class,
                turn -> {
                  Thread.sleep(Json.number(step.get("body_ms")));
                  return Mapping.bodyOf(step);
                });
    return Mapping.outcome(outcome);
  }

  private Object once(Map<String, Object> step) throws Exception {
    boolean[] ran = {false};
    var request = Mapping.turn(gate, step.get("once"), step);
    if (Boolean.TRUE.equals(step.get("typed"))) {
      LocalDate day =
          request
              .codec(new Mapping.DateCodec())
              .once(
                  LocalDate.class,
                  turn -> {
                    ran[0] = true;
                    return LocalDate.parse(Json.text(step.get("result")));
                  });
      return Json.of("returned", String.valueOf(day), "body_ran", ran[0], "type_ok", day != null);
    }
    Object value =
        request.once(
            Object.class,
            turn -> {
              ran[0] = true;
              return Mapping.bodyOf(step);
            });
    return Json.of("returned", Json.write(value), "body_ran", ran[0], "type_ok", true);
  }

  private Object seen(Map<String, Object> step) {
    Seen seen = gate.seen(Mapping.delivery(step.get("seen")));
    return Json.of(
        "state",
        seen.state(),
        "event_id",
        seen.eventId(),
        "outcome",
        seen.outcome(),
        "result",
        Json.write(seen.result(Object.class)));
  }

  private Object markAll(Map<String, Object> step) {
    List<Delivery> given = Mapping.many(step);
    List<MarkItem> items = gate.markAll(given).toList();
    int first = 0;
    boolean inOrder = true;
    List<Object> problems = new ArrayList<>();
    for (int i = 0; i < items.size(); i++) {
      MarkItem item = items.get(i);
      if (item.error() != null) {
        Map<String, Object> problem = Mapping.error(item.error());
        problem.put("index", i);
        problems.add(problem);
      }
      first += item.first() ? 1 : 0;
      inOrder &= item.delivery() == given.get(i);
    }
    return Json.of(
        "count",
        items.size(),
        "first",
        first,
        "duplicates",
        items.size() - first - problems.size(),
        "errors",
        problems,
        "in_order",
        inOrder);
  }

  /** So many turns; each is ended when all have begun. */
  private Object many(Map<String, Object> step) throws Exception {
    int count = Json.number(step.get("count"));
    CountDownLatch entered = new CountDownLatch(count);
    AtomicInteger ran = new AtomicInteger();
    List<Thread> threads = new ArrayList<>();
    for (int i = 0; i < count; i++) {
      String name = "many-" + i;
      Delivery delivery = Delivery.of(Json.text(step.get("team")), name).session(name);
      Thread thread =
          new Thread(
              () -> {
                try {
                  Outcome<Object> outcome =
                      gate.turn(delivery)
                          .run(
                              Object.class,
                              turn -> {
                                entered.countDown();
                                entered.await();
                                return null;
                              });
                  if (outcome instanceof Outcome.Ran) {
                    ran.incrementAndGet();
                  }
                } catch (InterruptedException | OncegateException e) {
                  entered.countDown(); // it is not counted, and the others do not wait for it
                }
              });
      thread.setDaemon(true);
      thread.start();
      threads.add(thread);
    }
    for (Thread thread : threads) {
      thread.join();
    }
    return Json.of("ran", ran.get());
  }
}
