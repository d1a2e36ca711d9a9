package io.oncegate.conformance;

import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/** The server behind proxies, and the faults of a scenario. */
final class Testbed extends LineProcess {
  private static final String DATABASE = "ONCEGATE_TEST_DATABASE_URL";

  /** One database server for all scenarios, unless there is one already. It ends with this process. */
  private static @Nullable LineProcess database;

  /** Its address, for what other class loaders have loaded. */
  private static final String DATABASE_PROPERTY = "oncegate.test.database";

  final List<String> replicas = new ArrayList<>();

  private Testbed(List<String> command) throws IOException {
    super(command);
    for (Object address : Json.list(Json.object(greeting.get("ready")).get("replicas"))) {
      replicas.add((String) address);
    }
  }

  static Testbed start(String store, int replicas, List<Object> server) throws IOException {
    List<String> command = new ArrayList<>();
    if (store.equals("postgres")) {
      command.addAll(List.of("env", DATABASE + "=" + databaseUrl()));
    }
    command.addAll(List.of(program(), "--store", store, "--replicas", String.valueOf(replicas), "--"));
    server.forEach(argument -> command.add((String) argument));
    return new Testbed(command);
  }

  static String program() {
    return Objects.requireNonNull(System.getenv("ONCEGATE_TESTBED"), "ONCEGATE_TESTBED names no testbed");
  }

  static synchronized String databaseUrl() throws IOException {
    String given = System.getenv(DATABASE);
    if (given != null && !given.isEmpty()) {
      return given;
    }
    String started = System.getProperty(DATABASE_PROPERTY);
    if (started != null) {
      return started;
    }
    database = new LineProcess(List.of(program(), "postgres"));
    String url = (String) Json.object(database.greeting.get("ready")).get("url");
    System.setProperty(DATABASE_PROPERTY, url);
    return url;
  }

  /** The environment of another program that shares the database. */
  static Map<String, String> environment() throws IOException {
    return Map.of(DATABASE, databaseUrl());
  }
}
