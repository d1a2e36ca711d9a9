package io.oncegate.conformance;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/** A client in a process of its own, which can be killed: {@link Program} again. */
final class ChildClient implements Client {
  private final LineProcess process;
  private boolean isDead;

  ChildClient(String name, String server, Map<String, Object> options) throws IOException {
    String classPath = System.getProperty("java.class.path");
    process = new LineProcess(Program.command(classPath, "child", Json.GSON.toJson(List.of(name, server, options))));
  }

  @Override
  public @Nullable Object perform(Map<String, Object> step) throws Exception {
    if (step.containsKey("die")) {
      process.kill();
      isDead = true;
      return null;
    }
    try {
      return process.ask("step", Json.of("step", step));
    } catch (LineProcess.Refusal e) {
      return Json.of("error", Json.of("kind", "unexpected", "message", e.getMessage() + process.log()));
    }
  }

  @Override
  public void close() throws Exception {
    if (!isDead) {
      process.ask("close", Map.of());
    }
    process.close();
  }

  /** The process of a ChildClient. It ends when its standard input does. */
  static void run(String arguments) throws Exception {
    List<Object> given = Json.list(Json.parse(arguments));
    String server = (String) given.get(1);
    Program.warmUp(server);
    LocalClient client = new LocalClient((String) given.get(0), server, Json.object(given.get(2)));
    print(Json.of("ready", true));
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      Map<String, Object> request = Json.parseObject(line);
      Thread thread =
          new Thread(
              () -> {
                Map<String, Object> answer = Json.of("id", request.get("id"));
                try {
                  if (request.get("do").equals("close")) {
                    client.close();
                    answer.put("ok", null);
                  } else {
                    answer.put("ok", client.perform(Json.object(request.get("step"))));
                  }
                } catch (Exception e) {
                  answer.put("error", e.toString());
                }
                print(answer);
              });
      thread.setDaemon(true);
      thread.start();
    }
  }

  private static synchronized void print(Map<String, Object> line) {
    System.out.println(Json.GSON.toJson(line));
  }
}
