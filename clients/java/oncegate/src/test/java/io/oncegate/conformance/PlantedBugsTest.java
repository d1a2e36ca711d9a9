package io.oncegate.conformance;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assertions.fail;
import static org.junit.jupiter.params.provider.Arguments.arguments;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.api.parallel.Execution;
import org.junit.jupiter.api.parallel.ExecutionMode;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/** Each planted bug turns its scenarios red, and some turn random runs red. So a green one means something. */
@Tag("faults")
final class PlantedBugsTest {
  /** A random run in which the bug has no effect is repeated with the next seed. */
  private static final int SEEDS = 10;

  private static final int RUNS = 120;

  private static List<Object> bugs() throws IOException {
    return Json.list(Json.parse(Files.readString(Scenario.path("planted.json"))));
  }

  static Stream<Arguments> all() throws IOException {
    return bugs().stream().map(bug -> arguments(Json.object(bug).get("name"), bug));
  }

  @BeforeAll
  static void prepare() throws Exception {
    Program.warmUp();
    Testbed.databaseUrl(); // which all of them share
  }

  @Test
  void areAllPlanted() throws IOException {
    assertEquals(bugs().size(), Planted.count());
  }

  @ParameterizedTest(name = "{0}")
  @MethodSource("all")
  @Execution(ExecutionMode.CONCURRENT)
  void isFound(String name, Map<String, Object> bug, @TempDir Path planted) throws Exception {
    Planted.compile(name, planted);
    try (Planted.Library library = new Planted.Library(planted)) {
      find(bug, planted, library);
    }
  }

  private static void find(Map<String, Object> bug, Path planted, Planted.Library library) throws Exception {
    int shown = 0;
    for (Map.Entry<String, Object> red : Json.object(bug.get("red")).entrySet()) {
      Path file = Scenario.path("scenarios/" + red.getKey() + ".json");
      if (Scenario.read(file).isPossible()) { // else random runs find it
        turnsRed(library, file, Json.number(red.getValue()));
        shown++;
      }
    }
    if (bug.containsKey("random")) {
      Map<String, Object> random = Json.object(bug.get("random"));
      breaks(
          planted,
          library,
          (String) random.get("rule"),
          Json.list(random.get("faults")).stream().map(fault -> (String) fault).toList());
      shown++;
    }
    assertTrue(shown > 0, "nothing shows it");
  }

  private static void turnsRed(Planted.Library library, Path file, int step) throws Exception {
    String problem = library.problem(file);
    Pattern differs = Pattern.compile("^step " + step + ": .*\\nMismatch: ");
    boolean isRed = problem != null && differs.matcher(problem).lookingAt() && !problem.contains("\"unexpected\"");
    assertTrue(isRed, file.getFileName() + " is not red at step " + step + ":\n" + problem);
  }

  private static void breaks(Path planted, Planted.Library library, String rule, List<String> faults)
      throws Exception {
    for (int seed = 0; seed < SEEDS; seed++) {
      // The replica without faults grants what the holders of the other one may have lost.
      RandomRuns.Options options = new RandomRuns.Options("postgres", RUNS, seed, faults, 1, false);
      // A pause stops the whole process.
      RandomRuns.Report report =
          faults.contains("pause")
              ? Program.randomRuns(Planted.classPath(planted), options)
              : library.randomRuns(options);
      if (report.breaks(rule)) {
        return;
      }
    }
    fail(SEEDS + " random runs have not broken " + rule);
  }
}
