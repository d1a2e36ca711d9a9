package io.oncegate.conformance;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.io.Reader;
import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import org.jspecify.annotations.Nullable;

/** A process that is asked by lines of JSON on its standard input, and answers by lines. */
class LineProcess implements AutoCloseable {
  private static final int LOG_SIZE = 20_000;

  private final String name;
  private final Process process;
  private final OutputStream stdin;
  final Map<String, Object> greeting;
  private final StringBuilder log = new StringBuilder();
  private final Map<Integer, CompletableFuture<Map<String, Object>>> waiting = new LinkedHashMap<>();
  private int next;
  private boolean hasEnded;

  /** An answer of a process that it cannot do what it was asked. */
  static final class Refusal extends IOException {
    private static final long serialVersionUID = 1;

    Refusal(String text) {
      super(text);
    }
  }

  LineProcess(List<String> command) throws IOException {
    name = command.get(0);
    process = new ProcessBuilder(command).start();
    stdin = process.getOutputStream();
    Reader errors = new InputStreamReader(process.getErrorStream(), StandardCharsets.UTF_8);
    thread("errors", () -> readLog(errors));
    BufferedReader lines = new BufferedReader(new InputStreamReader(process.getInputStream(), StandardCharsets.UTF_8));
    String first = lines.readLine();
    if (first == null) {
      process.destroyForcibly();
      throw new IOException(name + " ended before it was ready:\n" + log());
    }
    greeting = Json.parseObject(first);
    thread("answers", () -> readAnswers(lines));
  }

  private void thread(String kind, Runnable work) {
    Thread thread = new Thread(work, kind + " of " + name);
    thread.setDaemon(true);
    thread.start();
  }

  /** Keeps the end of the standard error, for a failure's report. */
  private void readLog(Reader errors) {
    char[] buffer = new char[8192];
    try {
      for (int length = errors.read(buffer); length >= 0; length = errors.read(buffer)) {
        synchronized (log) {
          log.append(buffer, 0, length);
          log.delete(0, Math.max(0, log.length() - LOG_SIZE));
        }
      }
    } catch (IOException e) {
      synchronized (log) {
        log.append(e);
      }
    }
  }

  String log() {
    synchronized (log) {
      return log.toString();
    }
  }

  private void readAnswers(BufferedReader lines) {
    try {
      for (String line = lines.readLine(); line != null; line = lines.readLine()) {
        Map<String, Object> answer = Json.parseObject(line);
        CompletableFuture<Map<String, Object>> asked;
        synchronized (this) {
          asked = waiting.remove(Json.number(answer.get("id")));
        }
        asked.complete(answer);
      }
    } catch (IOException e) {
      process.destroyForcibly();
    }
    synchronized (this) {
      hasEnded = true;
      waiting.values().forEach(asked -> asked.completeExceptionally(new Refusal(name + " has ended")));
      waiting.clear();
    }
  }

  @Nullable Object ask(String command, Map<String, Object> arguments) throws IOException, InterruptedException {
    CompletableFuture<Map<String, Object>> answered = new CompletableFuture<>();
    synchronized (this) {
      if (hasEnded) {
        throw new Refusal(name + " has ended");
      }
      next++;
      Map<String, Object> request = Json.of("id", next, "do", command);
      request.putAll(arguments);
      waiting.put(next, answered);
      try {
        stdin.write((Json.GSON.toJson(request) + "\n").getBytes(StandardCharsets.UTF_8));
        stdin.flush();
      } catch (IOException e) {
        throw new Refusal(e.toString());
      }
    }
    Map<String, Object> answer;
    try {
      answer = answered.get();
    } catch (ExecutionException e) {
      throw new Refusal(e.getCause().getMessage());
    }
    if (answer.get("error") instanceof String problem) {
      throw new Refusal(problem);
    }
    return answer.get("ok");
  }

  void kill() throws InterruptedException {
    process.destroyForcibly();
    process.waitFor();
  }

  /** Ends its input, upon which it exits. */
  @Override
  public void close() throws IOException, InterruptedException {
    try {
      stdin.close();
    } catch (IOException e) {
      // It has ended.
    }
    if (!process.waitFor(20, TimeUnit.SECONDS)) {
      kill();
    }
  }
}
