package io.oncegate.conformance;

import io.oncegate.Delivery;
import io.oncegate.Gate;
import io.oncegate.UnavailableException;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;

/** What the tests run in a process of its own: a client, or a scenario or random runs with a bug in the library. */
final class Program {
  private Program() {}

  /** The command that runs this program in a mode. {@code planted}: a folder with classes that go before the library's. */
  static List<String> command(String planted, String mode, String arguments) {
    String classes = System.getProperty("java.class.path");
    List<String> command = new ArrayList<>();
    command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
    // It runs for seconds.
    command.addAll(List.of("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-cp"));
    command.add(planted.isEmpty() ? classes : planted + java.io.File.pathSeparator + classes);
    command.addAll(List.of(Program.class.getName(), mode, arguments));
    return command;
  }

  public static void main(String[] arguments) throws Exception {
    switch (arguments[0]) {
      case "child" -> ChildClient.run(arguments[1]);
      case "scenario" -> scenario(arguments[1]);
      case "random" ->
          System.out.println(
              Json.GSON.toJson(RandomRuns.run(Json.GSON.fromJson(arguments[1], RandomRuns.Options.class))));
      default -> throw new IllegalArgumentException(arguments[0]);
    }
    System.exit(0);
  }

  /** How a process ended. */
  record Ended(int code, String output, String errors) {}

  static Ended run(String planted, String mode, String arguments) throws IOException, InterruptedException {
    Path folder = Files.createTempDirectory("oncegate");
    try {
      Path output = folder.resolve("output");
      Path errors = folder.resolve("errors");
      ProcessBuilder builder = new ProcessBuilder(command(planted, mode, arguments));
      builder.environment().putAll(Testbed.environment());
      Process process = builder.redirectOutput(output.toFile()).redirectError(errors.toFile()).start();
      process.getOutputStream().close();
      int code = process.waitFor();
      Ended ended = new Ended(code, Files.readString(output), Files.readString(errors));
      Files.delete(output);
      Files.delete(errors);
      return ended;
    } finally {
      Files.delete(folder);
    }
  }

  static RandomRuns.Report randomRuns(String planted, RandomRuns.Options options)
      throws IOException, InterruptedException {
    Ended ended = run(planted, "random", Json.GSON.toJson(options));
    if (ended.code() != 0) {
      throw new IOException("the random runs ended with " + ended.code() + ":\n" + ended.errors());
    }
    return Json.GSON.fromJson(ended.output(), RandomRuns.Report.class);
  }

  /** Loads what a first call needs: on a busy machine that takes seconds, which a scenario's times do not allow for. */
  static void warmUp() {
    try (Gate gate = Gate.builder().server("127.0.0.1:1").patience(Duration.ZERO).logger(new QuietLogger()).build()) {
      gate.turn(Delivery.of("T1", "E1")).begin();
      throw new IllegalStateException("a server listens on port 1");
    } catch (UnavailableException e) {
      // As expected.
    }
  }

  private static void scenario(String path) throws Exception {
    warmUp();
    try {
      Scenario.read(Path.of(path)).run("sqlite");
    } catch (StepFailed e) {
      System.err.println("Error: " + e.getMessage());
      System.exit(1);
    }
  }
}
