package io.oncegate.bolt;

import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.List;
import java.util.ResourceBundle;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.stream.Stream;

/** The log of a gate. */
final class Log implements System.Logger {
  private final List<String> lines = new CopyOnWriteArrayList<>();

  @Override
  public String getName() {
    return "log";
  }

  @Override
  public boolean isLoggable(Level level) {
    return level.compareTo(Level.WARNING) >= 0;
  }

  @Override
  public void log(Level level, ResourceBundle bundle, String text, Throwable problem) {
    if (isLoggable(level)) {
      lines.add(level + " " + text + causes(problem));
    }
  }

  private static String causes(Throwable problem) {
    return problem == null ? "" : ": " + problem + causes(problem.getCause());
  }

  @Override
  public void log(Level level, ResourceBundle bundle, String format, Object... parameters) {
    log(level, bundle, format, (Throwable) null);
  }

  /** It has a line with all of these texts. */
  void has(String... texts) {
    assertTrue(
        lines.stream().anyMatch(line -> Stream.of(texts).allMatch(line::contains)), List.of(texts) + " in " + lines);
  }

  void hasNot(String text) {
    assertFalse(lines.stream().anyMatch(line -> line.contains(text)), text + " in " + lines);
  }
}
