package io.oncegate.api;

import static org.junit.jupiter.api.Assertions.assertEquals;

import io.oncegate.Gate;
import io.oncegate.bolt.GuardedApp;
import io.oncegate.kotlin.Outcome;
import io.oncegate.testing.OncegateServer;
import java.io.IOException;
import java.net.URISyntaxException;
import java.nio.file.FileSystem;
import java.nio.file.FileSystems;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.TestFactory;

/**
 * The public API is that of {@code clients/java/api}, which shows each of its changes to the reader of a commit. With
 * UPDATE_API=1 it is written there instead.
 */
final class ApiTest {
  private static final Path FOLDER = Path.of(".");

  @TestFactory
  Stream<DynamicTest> isThatOfTheFile() {
    return Stream.of(
        DynamicTest.dynamicTest("oncegate", () -> compare("oncegate", Gate.class)),
        DynamicTest.dynamicTest("oncegate-testing", () -> compare("oncegate-testing", OncegateServer.class)),
        DynamicTest.dynamicTest("oncegate-bolt", () -> compare("oncegate-bolt", GuardedApp.class)),
        DynamicTest.dynamicTest("oncegate-kotlin", () -> compare("oncegate-kotlin", Outcome.class)));
  }

  private static void compare(String artifact, Class<?> one) throws Exception {
    Path file = FOLDER.resolve(artifact + ".txt");
    StringBuilder api = new StringBuilder();
    for (Class<?> type : classesBeside(one)) {
      api.append(Signatures.of(type));
    }
    if ("1".equals(System.getenv("UPDATE_API"))) {
      Files.writeString(file, api);
    }
    assertEquals(
        Files.readString(file), api.toString(), "the public API has changed: UPDATE_API=1 ./check -Dtest=ApiTest");
  }

  /** All classes of the artifact that a class is in. */
  private static List<Class<?>> classesBeside(Class<?> one) throws IOException, URISyntaxException {
    Path place = Path.of(one.getProtectionDomain().getCodeSource().getLocation().toURI());
    if (Files.isDirectory(place)) {
      return classesIn(place);
    }
    try (FileSystem jar = FileSystems.newFileSystem(place)) {
      return classesIn(jar.getPath("/"));
    }
  }

  private static List<Class<?>> classesIn(Path root) throws IOException {
    try (Stream<Path> files = Files.walk(root)) {
      return files
          .map(file -> root.relativize(file).toString())
          .filter(file -> file.endsWith(".class") && !file.contains("-info"))
          .map(file -> file.substring(0, file.length() - ".class".length()).replace('/', '.'))
          .sorted()
          .<Class<?>>map(ApiTest::load)
          .filter(Signatures::isPublic)
          .toList();
    }
  }

  private static Class<?> load(String name) {
    try {
      return Class.forName(name, false, ApiTest.class.getClassLoader());
    } catch (ClassNotFoundException e) {
      throw new IllegalStateException(e);
    }
  }
}
