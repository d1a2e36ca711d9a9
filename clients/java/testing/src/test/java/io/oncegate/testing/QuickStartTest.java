package io.oncegate.testing;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import javax.tools.JavaCompiler;
import javax.tools.StandardJavaFileManager;
import javax.tools.ToolProvider;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.api.io.TempDir;

/** The quick start of the README, as it stands there. */
final class QuickStartTest {
  private static final int MOST_LINES = 15;
  private static final String MENTION =
      """
      {"type": "event_callback", "team_id": "T1", "event_id": "Ev1", "event":
        {"type": "app_mention", "channel": "C1", "ts": "17.5", "user": "U1", "text": "hello"}}""";

  @RegisterExtension final OncegateServer server = OncegateServer.create();

  @TempDir Path folder;

  private static String program() throws IOException {
    String section = Files.readString(Path.of("../README.md")).split("\n## Quick start\n", 2)[1];
    return section.split("\n```java\n", 2)[1].split("```", 2)[0];
  }

  @Test
  void answersOnce() throws Exception {
    String program = program();
    assertTrue(program.lines().count() <= MOST_LINES, program.lines().count() + " lines");
    compile(Files.writeString(folder.resolve("Bot.java"), program));
    String answer = run(MENTION);
    assertTrue(answer.startsWith("an answer"), answer);
    assertEquals(answer, run(MENTION)); // delivered again
  }

  private void compile(Path source) throws IOException {
    JavaCompiler compiler = ToolProvider.getSystemJavaCompiler();
    StringWriter problems = new StringWriter();
    List<String> options =
        List.of(
            "--release", "11", "-proc:none", "-Xlint:all,-options", "-Werror", "-cp",
            System.getProperty("java.class.path"), "-d", folder.toString());
    try (StandardJavaFileManager files = compiler.getStandardFileManager(null, null, null)) {
      boolean compiled =
          compiler.getTask(problems, files, null, options, null, files.getJavaFileObjects(source)).call();
      assertTrue(compiled, problems.toString());
    }
  }

  private String run(String body) throws IOException, InterruptedException {
    ProcessBuilder bot =
        new ProcessBuilder(
            Path.of(System.getProperty("java.home"), "bin", "java").toString(),
            "-cp",
            folder + java.io.File.pathSeparator + System.getProperty("java.class.path"),
            "Bot",
            body);
    bot.environment().put("ONCEGATE_SERVER", server.address());
    Process process = bot.redirectError(ProcessBuilder.Redirect.INHERIT).start();
    String output = new String(process.getInputStream().readAllBytes());
    assertEquals(0, process.waitFor());
    return output;
  }
}
