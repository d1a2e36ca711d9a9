package io.oncegate.conformance;

import io.oncegate.Delivery;
import io.oncegate.Gate;
import io.oncegate.Turn;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/** What the tests run in a process of its own: a client, or random runs, whose faults stop the process. */
final class Program {
  private Program() {}

  /** The command that runs this program in a mode, with classes of the library. */
  static List<String> command(String classPath, String mode, String arguments) {
    List<String> command = new ArrayList<>();
    command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
    // It runs for seconds.
    command.addAll(List.of("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-cp", classPath));
    command.addAll(List.of(Program.class.getName(), mode, arguments));
    return command;
  }

  public static void main(String[] arguments) throws Exception {
    switch (arguments[0]) {
      case "child" -> ChildClient.run(arguments[1]);
      case "random" -> System.out.println(RandomRuns.report(arguments[1]));
      default -> throw new IllegalArgumentException(arguments[0]);
    }
    System.exit(0);
  }

  /** The report of random runs in a process of its own. */
  static RandomRuns.Report randomRuns(String classPath, RandomRuns.Options options)
      throws IOException, InterruptedException {
    Path folder = Files.createTempDirectory("oncegate");
    Path output = folder.resolve("output");
    Path errors = folder.resolve("errors");
    try {
      ProcessBuilder builder = new ProcessBuilder(command(classPath, "random", Json.GSON.toJson(options)));
      builder.environment().putAll(Testbed.environment());
      Process process = builder.redirectOutput(output.toFile()).redirectError(errors.toFile()).start();
      process.getOutputStream().close();
      if (process.waitFor() != 0) {
        throw new IOException("the random runs ended with " + process.exitValue() + ":\n" + Files.readString(errors));
      }
      return RandomRuns.Report.read(Files.readString(output));
    } finally {
      Files.deleteIfExists(output);
      Files.deleteIfExists(errors);
      Files.delete(folder);
    }
  }

  /**
   * Loads what turns need, by one at the server: on a busy machine that takes seconds, which a scenario's times do not
   * allow for. A grant that is read late is renewed by calls, and so outlives its grace.
   */
  static void warmUp(String server) {
    try (Gate gate = Gate.builder().server(server).logger(new QuietLogger()).build()) {
      Delivery delivery = Delivery.of("warm-up", String.valueOf(ProcessHandle.current().pid())).session("S1");
      String id;
      try (Turn turn = gate.turn(delivery).begin()) {
        id = turn.detach();
      }
      try (Turn turn = gate.adopt(id)) {
        turn.succeed("done");
      }
      gate.seen(delivery);
    }
  }

  /** The same, at a server of its own. */
  static void warmUp() throws IOException, InterruptedException {
    try (Testbed testbed = Testbed.start("sqlite", 1, List.of())) {
      warmUp(testbed.replicas.get(0));
    }
  }
}
