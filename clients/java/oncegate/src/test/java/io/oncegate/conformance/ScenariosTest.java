package io.oncegate.conformance;

import static org.junit.jupiter.params.provider.Arguments.arguments;

import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.parallel.Execution;
import org.junit.jupiter.api.parallel.ExecutionMode;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/** All scenarios on both stores. */
final class ScenariosTest {
  @BeforeAll
  static void warmUp() throws Exception {
    Program.warmUp();
  }

  static Stream<Arguments> scenarios() {
    return Scenario.STORES.stream()
        .flatMap(
            store ->
                Scenario.all().stream()
                    .filter(scenario -> scenario.runsOn(store))
                    .map(scenario -> arguments(store, scenario.file(), scenario)));
  }

  @ParameterizedTest(name = "{0} {1}")
  @MethodSource("scenarios")
  @Execution(ExecutionMode.CONCURRENT)
  void passes(String store, String file, Scenario scenario) throws Exception {
    scenario.run(store);
    scenario.notePass(store);
  }
}
