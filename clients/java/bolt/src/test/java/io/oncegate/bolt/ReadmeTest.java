package io.oncegate.bolt;

import static io.oncegate.bolt.FakeSlack.mention;
import static io.oncegate.bolt.FakeSlack.post;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.slack.api.bolt.AppConfig;
import io.oncegate.Gate;
import io.oncegate.testing.OncegateServer;
import java.io.IOException;
import java.io.StringWriter;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import javax.tools.JavaCompiler;
import javax.tools.StandardJavaFileManager;
import javax.tools.ToolProvider;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.api.io.TempDir;

/** The lines of the README about Bolt, as they stand there. */
@Timeout(value = 120, threadMode = Timeout.ThreadMode.SEPARATE_THREAD)
final class ReadmeTest {
  @RegisterExtension final OncegateServer server = OncegateServer.create();

  @TempDir Path folder;

  private static String program() throws IOException {
    String section = Files.readString(Path.of("../README.md")).split("\n## Bolt\n", 2)[1];
    List<String> lines = section.split("\n```java\n", 2)[1].split("```", 2)[0].lines().collect(Collectors.toList());
    int last = lines.lastIndexOf("import io.oncegate.bolt.*;") + 1;
    return String.join("\n", lines.subList(0, last))
        + "\npublic class Program {"
        + "\n  static String answer(String question) { return \"an answer to \" + question; }"
        + "\n  public static GuardedApp app(com.slack.api.bolt.AppConfig config, io.oncegate.Gate gate) {\n"
        + String.join("\n", lines.subList(last, lines.size()))
        + "\nreturn app; } }\n";
  }

  @Test
  void anAnswerThatIsNotPostedIsDeliveredAgain() throws Exception {
    compile(Files.writeString(folder.resolve("Program.java"), program()));
    try (FakeSlack slack = new FakeSlack();
        Gate gate = Gate.builder().server(server.address()).build();
        URLClassLoader loader = new URLClassLoader(new URL[] {folder.toUri().toURL()}, getClass().getClassLoader())) {
      GuardedApp app =
          (GuardedApp)
              loader.loadClass("Program").getMethod("app", AppConfig.class, Gate.class).invoke(null, slack.config(), gate);
      slack.answer("chat.postMessage", "{\"ok\": false, \"error\": \"ratelimited\"}");
      assertEquals("ratelimited", assertThrows(IOException.class, () -> post(app, mention("Ev1"))).getMessage());
      BlockingQueue<String> posts = slack.answer("chat.postMessage", "{\"ok\": true}");
      assertEquals(200, post(app, mention("Ev1"), 1).getStatusCode());
      assertEquals(200, post(app, mention("Ev1"), 2).getStatusCode());
      String posted = posts.poll(60, TimeUnit.SECONDS);
      assertTrue(posted.contains("an+answer+to+hi") || posted.contains("an%20answer%20to%20hi"), posted);
      assertTrue(posted.contains("thread_ts=17.5"), posted);
      assertTrue(posts.isEmpty(), posts.toString());
    }
  }

  private void compile(Path source) throws IOException {
    JavaCompiler compiler = ToolProvider.getSystemJavaCompiler();
    StringWriter problems = new StringWriter();
    List<String> options =
        List.of(
            "--release", "11", "-proc:none", "-Xlint:all,-options,-processing,-classfile", "-cp",
            System.getProperty("java.class.path"), "-d", folder.toString());
    try (StandardJavaFileManager files = compiler.getStandardFileManager(null, null, null)) {
      assertTrue(
          compiler.getTask(problems, files, null, options, null, files.getJavaFileObjects(source)).call(),
          problems.toString());
    }
  }
}
