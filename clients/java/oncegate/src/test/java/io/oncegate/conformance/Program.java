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

  /** Loads what a first call needs: on a busy machine that takes seconds, which a scenario's times do not allow for. */
  static void warmUp() {
    try (Gate gate = Gate.builder().server("127.0.0.1:1").patience(Duration.ZERO).logger(new QuietLogger()).build()) {
      gate.turn(Delivery.of("T1", "E1")).begin();
      throw new IllegalStateException("a server listens on port 1");
    } catch (UnavailableException e) {
      // As expected.
    }
  }
}
