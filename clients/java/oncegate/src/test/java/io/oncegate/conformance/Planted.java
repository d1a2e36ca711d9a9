package io.oncegate.conformance;

import io.oncegate.Gate;
import java.io.File;
import java.io.IOException;
import java.io.StringWriter;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import javax.tools.JavaCompiler;
import javax.tools.StandardJavaFileManager;
import javax.tools.ToolProvider;
import org.jspecify.annotations.Nullable;

/** The bugs of clients/conformance/planted.json, as changes of the library's source. */
final class Planted {
  /** A change of one text of a file of the library. */
  private record Change(String file, String was, String now) {}

  private static final String ENTERED =
      "read(io.oncegate.v1.Turn.newBuilder().setAttempt(1).setRemaining("
          + "com.google.protobuf.Duration.newBuilder().setSeconds(60)).build(), sentAt(), 0); return true;";

  private static final Map<String, List<Change>> CHANGES = new LinkedHashMap<>();

  private static void plant(String name, String file, String was, String now) {
    CHANGES.put(name, List.of(new Change(file, was, now)));
  }

  static {
    plant("enters-on-busy", "Turn", "throw busy(message.getBusy());", ENTERED);
    plant("enters-on-duplicate", "Turn", "case DUPLICATE:", "case DUPLICATE: if (until != 0) { " + ENTERED + " }");
    plant("fails-open", "TurnRequest", "case RUN:", "case RAISE: case RUN:");
    plant(
        "impatient",
        "Hold",
        "if (!failed.retryable() || left <= 0 || delay > left) {",
        "if (!failed.retryable() || left <= 0 || delay != 0) {");
    plant(
        "no-wait",
        "Turn",
        "request().setWait(Durations.of(wait));",
        "request().setWait(Durations.of(0 * wait));");
    plant(
        "new-request-id-per-retry",
        "Turn",
        "request().setWait(Durations.of(wait));",
        "request().setWait(Durations.of(wait)); startOver();");
    plant("no-consumer", "Delivery", ".setConsumer(consumer != null ? consumer : gateConsumer)", "");
    plant(
        "counts-from-receipt",
        "Hold",
        "trustedEnd = asked + elapsed + lasts",
        "trustedEnd = Clock.now() + elapsed + lasts");
    plant("ignores-elapsed", "Hold", "trustedEnd = asked + elapsed + lasts", "trustedEnd = asked + lasts");
    plant(
        "ignores-grace",
        "Hold",
        "long lasts = grace > 0 ? Math.min(remaining, grace) : remaining;",
        "long lasts = remaining;");
    plant(
        "silence-is-not-probed",
        "Hold",
        "probeAt = Clock.now() + Math.min(ttl / 5 * 2, latest);",
        "probeAt = Clock.now() + TimeUnit.HOURS.toNanos(1);");
    plant(
        "no-renewal-after-a-break",
        "Hold",
        "LostReason loss = failed.loss();\n    synchronized",
        "LostReason loss = LostReason.EXPIRED;\n    synchronized");
    plant(
        "renewal-dies",
        "Hold",
        "long every = Math.min(config.ttlNanos() / 3, left / 2);",
        "long every = TimeUnit.HOURS.toNanos(1);");
    plant(
        "loss-does-not-interrupt",
        "Hold",
        "    if (finish(reason)) {\n      breakStream();",
        "    if (reason == LostReason.ENDED && finish(reason)) {\n      breakStream();");
    plant("check-ignores-the-clock", "Hold", "granted && trustedEnd <= Clock.now()", "trustedEnd < 0");
    plant(
        "end-after-loss",
        "Turn",
        "if (!finishByHolder()) {\n      throw lostBy(reasonOfEnd(), value, null);",
        "if (!finishByHolder() && id().isEmpty()) {\n      throw lostBy(reasonOfEnd(), value, null);");
    plant(
        "end-is-not-repeated",
        "Turn",
        "if (hasStream() && endStream(end, until)) {\n        return;\n      }",
        "if (hasStream()) {\n if (endStream(end, until)) {\n return;\n }\n"
            + " throw Failure.unavailable(\"no answer\");\n }");
    plant(
        "unknown-is-success",
        "Turn",
        "throw new OutcomeUnknownException(id(), value, failed.getCause());",
        "return;");
    CHANGES.put(
        "success-is-failure",
        List.of(
            new Change(
                "Turn",
                "setOutcome(TurnOutcome.TURN_OUTCOME_SUCCEEDED)",
                "setOutcome(TurnOutcome.TURN_OUTCOME_FAILED)"),
            new Change("Turn", "if (encoded != null) {", "if (encoded != null && id().isEmpty()) {")));
    plant(
        "error-is-success",
        "Turn",
        "setOutcome(TurnOutcome.TURN_OUTCOME_FAILED).setDetail(shortened(detail))",
        "setOutcome(TurnOutcome.TURN_OUTCOME_SUCCEEDED)");
    plant(
        "reject-is-failure",
        "Turn",
        "setOutcome(TurnOutcome.TURN_OUTCOME_REJECTED)",
        "setOutcome(TurnOutcome.TURN_OUTCOME_FAILED)");
    CHANGES.put(
        "own-error-is-masked",
        List.of(
            new Change(
                "Turn",
                "config.log.log(Level.DEBUG, \"the end of a turn failed\", e);",
                "throw e instanceof Failure ? ((Failure) e).published() : (OncegateException) e;"),
            new Change("TurnRequest", "problem.addSuppressed(e);", "throw e;")));
    plant("single-channel", "Link", "STREAMS_PER_CONNECTION = 900", "STREAMS_PER_CONNECTION = 1 << 30");
    plant("lease-is-not-released", "Lease", "gate.track(() -> giveBack(\"\"));", "breakStream();");
  }

  private Planted() {}

  static int count() {
    return CHANGES.size();
  }

  /** Compiles what has a bug, into a folder that goes before the library on the class path. */
  static void compile(String name, Path folder) throws IOException {
    List<Change> changes = CHANGES.get(name);
    if (changes == null) {
      throw new IllegalStateException(name + " is not planted");
    }
    Map<String, String> sources = new HashMap<>();
    for (Change change : changes) {
      String source = sources.get(change.file());
      if (source == null) {
        source = Files.readString(Path.of("src/main/java/io/oncegate", change.file() + ".java"));
      }
      if (source.split(java.util.regex.Pattern.quote(change.was()), -1).length != 2) {
        throw new IllegalStateException(
            "the text to change must stand once in " + change.file() + "; plant anew: " + change.was());
      }
      sources.put(change.file(), source.replace(change.was(), change.now()));
    }
    JavaCompiler compiler = ToolProvider.getSystemJavaCompiler();
    StringWriter problems = new StringWriter();
    try (StandardJavaFileManager files = compiler.getStandardFileManager(null, null, null)) {
      for (Map.Entry<String, String> source : sources.entrySet()) {
        Path file = folder.resolve(source.getKey() + ".java");
        Files.writeString(file, source.getValue());
        boolean compiled =
            compiler
                .getTask(
                    problems,
                    files,
                    null,
                    List.of(
                        "--release",
                        "11",
                        "-proc:none",
                        "-cp",
                        System.getProperty("java.class.path"),
                        "-d",
                        folder.toString()),
                    null,
                    files.getJavaFileObjects(file))
                .call();
        if (!compiled) {
          throw new IllegalStateException(problems.toString());
        }
      }
    }
  }

  /** The class path of the library with a bug, for a process. */
  static String classPath(Path folder) {
    return folder + File.pathSeparator + System.getProperty("java.class.path");
  }

  /**
   * The library with a bug, and these tests over it, in this process: a process of its own would first load gRPC for
   * seconds.
   */
  static final class Library extends URLClassLoader {
    Library(Path folder) throws IOException {
      super(new URL[] {folder.toUri().toURL(), placeOf(Gate.class), placeOf(Planted.class)}, Gate.class.getClassLoader());
    }

    private static URL placeOf(Class<?> type) {
      return type.getProtectionDomain().getCodeSource().getLocation();
    }

    /** Loads anew what a bug may be in, or may see; the rest is that of this process. */
    @Override
    protected Class<?> loadClass(String name, boolean resolve) throws ClassNotFoundException {
      if (!name.startsWith("io.oncegate.") || name.startsWith("io.oncegate.v1.")) {
        return super.loadClass(name, resolve);
      }
      synchronized (getClassLoadingLock(name)) {
        Class<?> loaded = findLoadedClass(name);
        return loaded == null ? findClass(name) : loaded;
      }
    }

    private @Nullable Object call(Class<?> type, String method, String argument) throws Exception {
      Method called = loadClass(type.getName()).getDeclaredMethod(method, String.class);
      called.setAccessible(true);
      try {
        return called.invoke(null, argument);
      } catch (InvocationTargetException e) {
        throw e.getCause() instanceof Exception cause ? cause : e;
      }
    }

    /** What a scenario says of it; null: it passes. */
    @Nullable String problem(Path scenario) throws Exception {
      return (String) call(Scenario.class, "problem", scenario.toString());
    }

    RandomRuns.Report randomRuns(RandomRuns.Options options) throws Exception {
      return RandomRuns.Report.read(
          (String) call(RandomRuns.class, "report", Json.GSON.toJson(options)));
    }
  }
}
