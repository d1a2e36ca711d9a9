package io.oncegate.conformance;

import java.io.IOException;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.jspecify.annotations.Nullable;

/** Random faults while something is done. */
final class Faults {
  static final String TEAM = "T1";

  // A fault of one group overlaps those of the others. Cuts are frequent, and so are releases by force, of which not all
  // find a lease.
  private static final List<String> NETWORK =
      List.of("cut", "cut", "hold", "hold", "cut_before_data", "cut_before_data", "refuse");
  private static final List<String> SERVER = List.of("kill", "drain", "mute", "lose", "lose");
  private static final List<String> CLIENT = List.of("pause");

  private final CountDownLatch stop = new CountDownLatch(1);
  private final List<Faulter> faulters = new ArrayList<>();

  private Faults() {}

  static List<String> all() {
    List<String> all = new ArrayList<>(NETWORK);
    all.addAll(SERVER);
    all.addAll(CLIENT);
    return all;
  }

  /** What is done meanwhile. */
  interface Work {
    void run() throws Exception;
  }

  /** Does work under faults of these kinds, in so many replicas. Returns what was done. */
  static List<String> during(
      Testbed testbed, long seed, History history, List<String> kinds, int faulty, Work work) throws Exception {
    Faults faults = new Faults();
    for (int replica = 0; replica < faulty; replica++) {
      faults.add(testbed, seed, history, replica, NETWORK, kinds);
      faults.add(testbed, seed, history, replica, SERVER, kinds);
    }
    faults.add(testbed, seed, history, 0, CLIENT, kinds);
    faults.faulters.forEach(Thread::start);
    try {
      work.run();
    } finally {
      faults.stop.countDown();
    }
    List<String> done = new ArrayList<>();
    for (Faulter faulter : faults.faulters) {
      faulter.join();
      if (faulter.problem != null) {
        throw new IOException(faulter.problem);
      }
      done.addAll(faulter.done);
    }
    for (int replica = 0; replica < faulty; replica++) { // a cut may still be armed
      testbed.ask("cut", Json.of("replica", replica));
    }
    return done;
  }

  private void add(
      Testbed testbed, long seed, History history, int replica, List<String> group, List<String> kinds) {
    List<String> chosen = group.stream().filter(kinds::contains).toList();
    if (!chosen.isEmpty()) {
      Random chance = new Random(seed * 31 + faulters.size() + 1);
      faulters.add(new Faulter(testbed, replica, chosen, chance, history));
    }
  }

  /** Does random faults of one group, one after the other, until it is stopped. */
  private final class Faulter extends Thread {
    private final Testbed testbed;
    private final int replica;
    private final List<String> kinds;
    private final Random chance;
    private final History history;
    final List<String> done = new ArrayList<>();
    volatile @Nullable Exception problem;

    Faulter(Testbed testbed, int replica, List<String> kinds, Random chance, History history) {
      this.testbed = testbed;
      this.replica = replica;
      this.kinds = kinds;
      this.chance = chance;
      this.history = history;
      setDaemon(true);
    }

    private int between(int low, int high) {
      return low + chance.nextInt(high - low);
    }

    /** Returns false once the faults are to stop. */
    private boolean sleep(int low, int high) throws InterruptedException {
      return !stop.await(between(low, high), TimeUnit.MILLISECONDS);
    }

    private String of(String... choices) {
      return choices[chance.nextInt(choices.length)];
    }

    @Override
    public void run() {
      boolean pauses = kinds.contains("pause");
      List<String> next = new ArrayList<>();
      try {
        while (pauses ? sleep(2000, 5000) : sleep(200, 2000)) {
          if (next.isEmpty()) { // so each of them happens
            next.addAll(kinds);
            Collections.shuffle(next, chance);
          }
          String kind = next.remove(0);
          done.add(kind);
          fault(kind);
        }
      } catch (IOException | InterruptedException e) {
        problem = e;
      }
    }

    private @Nullable Object ask(String command, @Nullable Object... arguments)
        throws IOException, InterruptedException {
      Map<String, Object> all = Json.of(arguments);
      all.put("replica", replica);
      return testbed.ask(command, all);
    }

    private void fault(String kind) throws IOException, InterruptedException {
      switch (kind) {
        case "kill", "drain" -> {
          ask(kind);
          ask("restart", "after_ms", chance.nextInt(600));
        }
        case "cut" -> cut();
        case "hold" -> { // what is held arrives late, or never
          String direction = of("both", "to_client", "to_server");
          ask("hold", "direction", direction);
          sleep(100, 1500);
          if (chance.nextBoolean()) {
            cut();
          }
          ask("release", "direction", direction);
        }
        case "cut_before_data" -> ask(kind, "direction", of("to_client", "to_server"), "skip", chance.nextInt(6));
        case "mute" -> {
          ask("mute");
          sleep(100, 1200);
          ask("unmute");
        }
        case "lose" -> lose("session-" + chance.nextInt(Plan.SESSIONS));
        case "refuse" -> {
          ask("refuse");
          ask("cut");
          sleep(100, 2500);
          ask("accept");
        }
        default -> standStill(between(200, 2000));
      }
    }

    private void cut() throws IOException, InterruptedException {
      ask("cut", "side", of("both", "client", "server"));
    }

    private void lose(String session) throws InterruptedException {
      Object answer;
      try {
        answer = ask("lose", "team", TEAM, "session", session);
      } catch (IOException e) {
        return; // a server that is down cannot release a session
      }
      Map<String, Object> lost = Json.object(answer);
      if (Boolean.TRUE.equals(lost.get("released"))) {
        History.Forced forced =
            new History.Forced(session, fence(lost, "fence_before"), fence(lost, "fence"));
        history.note(() -> history.forced.add(forced));
      }
    }

    private static long fence(Map<String, Object> lost, String name) {
      return lost.get(name) instanceof Number fence ? fence.longValue() : 0;
    }

    /** Stops this whole process: neither timers nor messages are seen meanwhile. */
    private void standStill(int millis) throws IOException, InterruptedException {
      long pid = ProcessHandle.current().pid();
      String script = "kill -STOP " + pid + "; sleep " + millis / 1000.0 + "; kill -CONT " + pid;
      new ProcessBuilder("sh", "-c", script).start().waitFor();
    }
  }
}
