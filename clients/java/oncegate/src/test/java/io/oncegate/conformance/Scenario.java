package io.oncegate.conformance;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;

/** A scenario as it stands in clients/conformance/scenarios. */
record Scenario(
    String file,
    String name,
    List<Object> stores,
    int replicas,
    List<Object> server,
    Map<String, Object> clients,
    Map<String, Object> deliveries,
    List<Object> needs,
    List<Object> steps) {

  static final List<String> STORES = List.of("sqlite", "postgres");

  /**
   * What a client of this language can do. No handler blocks the library, because each has a thread of its own; and a
   * Java process cannot fork.
   */
  private static final Set<String> CAPABILITIES = Set.of("interrupt");

  private static final Path FOLDER = Path.of("../../conformance").toAbsolutePath().normalize();

  static Path path(String file) {
    return FOLDER.resolve(file);
  }

  static Scenario read(Path path) {
    Map<String, Object> given;
    try {
      given = Json.parseObject(Files.readString(path));
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    return new Scenario(
        path.getFileName().toString().replace(".json", ""),
        (String) given.get("name"),
        given.containsKey("stores") ? Json.list(given.get("stores")) : List.copyOf(STORES),
        given.containsKey("replicas") ? Json.number(given.get("replicas")) : 1,
        Json.list(given.get("server")),
        given.containsKey("clients") ? Json.object(given.get("clients")) : Map.of(),
        given.containsKey("deliveries") ? Json.object(given.get("deliveries")) : Map.of(),
        Json.list(given.get("needs")),
        Json.list(given.get("steps")));
  }

  static List<Scenario> all() {
    try (Stream<Path> files = Files.list(FOLDER.resolve("scenarios"))) {
      return files.filter(file -> file.toString().endsWith(".json")).sorted().map(Scenario::read).toList();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  boolean isPossible() {
    return CAPABILITIES.containsAll(needs);
  }

  boolean runsOn(String store) {
    return stores.contains(store) && isPossible();
  }

  /** Notes for {@code clients/behaviour} that it has passed. */
  void notePass(String store) throws IOException {
    String results = System.getenv("ONCEGATE_SCENARIO_RESULTS");
    if (results != null && !results.isEmpty()) {
      Files.writeString(
          Path.of(results, "java"),
          file + "\t" + store + "\n",
          StandardOpenOption.CREATE,
          StandardOpenOption.APPEND);
    }
  }

  void run(String store) throws Exception {
    try (Testbed testbed = Testbed.start(store, replicas, server)) {
      try (Interpreter interpreter = new Interpreter(this, testbed)) {
        interpreter.run();
      } catch (StepFailed e) {
        throw new StepFailed(e.getMessage() + "\nlog of the server:\n" + testbed.log(), e);
      }
    }
  }

  /** What a scenario says of a library with a bug: the problem, or null if it passes. */
  static @Nullable String problem(String path) throws Exception {
    try {
      read(Path.of(path)).run("sqlite");
      return null;
    } catch (StepFailed e) {
      return e.getMessage();
    }
  }
}
