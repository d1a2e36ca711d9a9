package io.oncegate.testing;

import io.grpc.ManagedChannel;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.oncegate.Gate;
import io.oncegate.Session;
import io.oncegate.v1.AdminServiceGrpc;
import io.oncegate.v1.EventState;
import io.oncegate.v1.ForceReleaseSessionLeaseRequest;
import io.oncegate.v1.GetStatsRequest;
import io.oncegate.v1.ListEventsRequest;
import io.oncegate.v1.ListEventsResponse;
import io.oncegate.v1.ListSessionsRequest;
import io.oncegate.v1.ListSessionsResponse;
import io.oncegate.v1.ProcessedEvent;
import io.oncegate.v1.SessionKey;
import io.oncegate.v1.SessionState;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Comparator;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.extension.AfterAllCallback;
import org.junit.jupiter.api.extension.AfterEachCallback;
import org.junit.jupiter.api.extension.BeforeAllCallback;
import org.junit.jupiter.api.extension.BeforeEachCallback;
import org.junit.jupiter.api.extension.ExtensionContext;

/**
 * The real server of oncegate, as a child of a test process, with a database of its own:
 *
 * <pre>{@code
 * @RegisterExtension static final OncegateServer server = OncegateServer.create();
 * }</pre>
 *
 * <p>A static field: one server for the class. An instance field: one for each test. Without JUnit, {@link #start} and
 * {@link #close}. It needs the server's binary: the one that ONCEGATE_BINARY names, or oncegate on the PATH.
 */
public final class OncegateServer
    implements BeforeAllCallback, BeforeEachCallback, AfterEachCallback, AfterAllCallback, AutoCloseable {
  /**
   * Kills the server and deletes its files as soon as the test process has ended, however that ended: only then does the
   * pipe on its standard input reach its end.
   */
  private static final String WATCH = "read -r _ || { kill -KILL \"$1\"; rm -rf \"$2\"; }";

  private static final String LISTENS = " listens on ";

  private final List<String> arguments;
  private final boolean durable;
  private final List<Gate> gates = Collections.synchronizedList(new ArrayList<>());
  private @Nullable String ofClass; // the id of the class whose tests it is for

  // Guarded by this.
  private @Nullable Path folder;
  private @Nullable Process process;
  private @Nullable Process watcher;
  private @Nullable ManagedChannel channel;
  private String address = "127.0.0.1:0";

  private OncegateServer(List<String> arguments, boolean durable) {
    this.arguments = List.copyOf(arguments);
    this.durable = durable;
  }

  /** A server whose records are in memory, with further arguments for {@code oncegate serve}. */
  public static OncegateServer create(String... arguments) {
    return new OncegateServer(List.of(arguments), false);
  }

  /** A server whose records outlive {@link #restart}. */
  public static OncegateServer durable(String... arguments) {
    return new OncegateServer(List.of(arguments), true);
  }

  /** Starts it, unless it runs. */
  public synchronized OncegateServer start() {
    if (process != null && process.isAlive()) {
      return this;
    }
    await(); // it may have crashed
    String binary = binary();
    try {
      if (folder == null) {
        folder = Files.createTempDirectory("oncegate-");
      }
      spawn(binary, folder);
    } catch (IOException e) {
      String log = log();
      close();
      throw new IllegalStateException("the server did not start: " + e.getMessage() + "\n" + log, e);
    }
    return this;
  }

  private void spawn(String binary, Path files) throws IOException {
    List<String> command = new ArrayList<>(List.of(binary, "serve", "--listen", address, "--database-url"));
    command.add(durable ? "sqlite://" + files.resolve("oncegate.db") : "memory:");
    command.addAll(arguments);
    ProcessBuilder builder = new ProcessBuilder(command);
    // Settings of the tests' own environment are for its clients.
    builder.environment().keySet().removeIf(name -> name.startsWith("ONCEGATE_"));
    builder.redirectError(ProcessBuilder.Redirect.appendTo(files.resolve("log").toFile()));
    Process started = builder.start();
    process = started;
    watcher = new ProcessBuilder("sh", "-c", WATCH, "sh", String.valueOf(started.pid()), files.toString()).start();
    BufferedReader output = new BufferedReader(new InputStreamReader(started.getInputStream(), StandardCharsets.UTF_8));
    String line = output.readLine();
    int at = line == null ? -1 : line.indexOf(LISTENS);
    if (line == null || at < 0) {
      throw new IOException("it says " + line);
    }
    address = line.substring(at + LISTENS.length()).split("[ ,]", 2)[0]; // it is the same after a restart
  }

  private static String binary() {
    String named = System.getenv("ONCEGATE_BINARY");
    if (named != null && !named.isEmpty()) {
      return named;
    }
    String path = System.getenv("PATH");
    for (String place : (path == null ? "" : path).split(":", -1)) {
      Path found = Path.of(place.isEmpty() ? "." : place, "oncegate");
      if (Files.isExecutable(found)) {
        return found.toString();
      }
    }
    throw new IllegalStateException("no oncegate server here: put it on the PATH, or set ONCEGATE_BINARY");
  }

  /** For {@link Gate.Builder#server} and ONCEGATE_SERVER. */
  public synchronized String address() {
    if (address.endsWith(":0")) {
      throw new IllegalStateException("the server has not been started");
    }
    return address;
  }

  /** Makes a gate for the server, which is closed with it. */
  public Gate gate() {
    Gate gate = Gate.builder().server(address()).build();
    gates.add(gate);
    return gate;
  }

  /** What the server has logged so far. */
  public synchronized String log() {
    try {
      return folder == null ? "" : Files.readString(folder.resolve("log"));
    } catch (IOException e) {
      return e.toString();
    }
  }

  /** Ends the server by SIGKILL, and waits until it has ended. */
  public synchronized void kill() {
    signal("KILL");
    await();
  }

  /** Kills the server, if it runs, and starts it at the same address. */
  public void restart() {
    kill();
    start();
  }

  /** Asks the server to end, by SIGTERM, and waits until it has ended. Turns stay with their holders. */
  public synchronized void drain() {
    signal("TERM");
    await();
  }

  /** Stops the server's process: its connections stay open, and nothing answers. */
  public void mute() {
    signal("STOP");
  }

  /** Lets the process of a muted server continue. */
  public void unmute() {
    signal("CONT");
  }

  private synchronized void signal(String name) {
    if (process != null && process.isAlive()) {
      waitFor(run("kill", "-" + name, String.valueOf(process.pid())));
    }
  }

  private static Process run(String... command) {
    try {
      return new ProcessBuilder(command).start();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  private synchronized void await() {
    if (process != null) {
      waitFor(process);
      process = null;
    }
    if (watcher != null) {
      watcher.destroyForcibly();
      waitFor(watcher);
      watcher = null;
    }
  }

  private static void waitFor(Process process) {
    boolean interrupted = false;
    try {
      while (true) {
        try {
          if (!process.waitFor(20, TimeUnit.SECONDS)) {
            process.destroyForcibly();
          } else {
            return;
          }
        } catch (InterruptedException e) {
          interrupted = true;
        }
      }
    } finally {
      if (interrupted) {
        Thread.currentThread().interrupt();
      }
    }
  }

  /** Closes its gates, ends the server, and deletes its files. */
  @Override
  public void close() {
    // A gate closes at once while its server answers.
    new ArrayList<>(gates).forEach(Gate::close);
    gates.clear();
    synchronized (this) {
      if (channel != null) {
        channel.shutdownNow();
        channel = null;
      }
      kill();
      delete();
      address = "127.0.0.1:0";
    }
  }

  private void delete() {
    if (folder == null) {
      return;
    }
    try (Stream<Path> files = Files.walk(folder)) {
      for (Path file : (Iterable<Path>) files.sorted(Comparator.reverseOrder())::iterator) {
        Files.deleteIfExists(file);
      }
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    folder = null;
  }

  private synchronized AdminServiceGrpc.AdminServiceBlockingStub admin() {
    if (channel == null) {
      channel = NettyChannelBuilder.forTarget(address()).usePlaintext().build();
    }
    return AdminServiceGrpc.newBlockingStub(channel).withWaitForReady().withDeadlineAfter(10, TimeUnit.SECONDS);
  }

  /** The turns in progress: of one tenant, or of all if it is empty. */
  public List<RunningTurn> turns(String team) {
    List<RunningTurn> turns = new ArrayList<>();
    ListEventsRequest.Builder request =
        ListEventsRequest.newBuilder().setTeamId(team).setState(EventState.EVENT_STATE_IN_PROGRESS);
    do {
      ListEventsResponse page = admin().listEvents(request.build());
      for (ProcessedEvent event : page.getEventsList()) {
        turns.add(new RunningTurn(event.getEventId(), event.getHolder(), event.getAttempt()));
      }
      request.setPageToken(page.getNextPageToken());
    } while (!request.getPageToken().isEmpty());
    return turns;
  }

  /** How many callers queue for a session of this tenant, or of all if it is empty. */
  public int waiting(String team) {
    return (int) admin().getStats(GetStatsRequest.newBuilder().setTeamId(team).build()).getWaiters();
  }

  /** Takes a held session from its holder, as an operator does by force. */
  public void lose(Session session) {
    String name = session.canonicalId();
    String team = session.team();
    boolean isHeld = false;
    ListSessionsRequest.Builder request = ListSessionsRequest.newBuilder().setTeamId(team).setPageSize(250);
    do {
      ListSessionsResponse page = admin().listSessions(request.build());
      for (io.oncegate.v1.Session found : page.getSessionsList()) {
        if (found.getSessionId().equals(name) && found.getState() == SessionState.SESSION_STATE_HELD) {
          isHeld = true;
          release(found);
        }
      }
      request.setPageToken(page.getNextPageToken());
    } while (!request.getPageToken().isEmpty());
    if (!isHeld) {
      throw new IllegalStateException("no session " + name + " of " + team + " is held");
    }
  }

  private void release(io.oncegate.v1.Session found) {
    SessionKey key =
        SessionKey.newBuilder()
            .setTeamId(found.getTeamId())
            .setSessionId(found.getSessionId())
            .setConsumer(found.getConsumer())
            .build();
    admin()
        .forceReleaseSessionLease(
            ForceReleaseSessionLeaseRequest.newBuilder()
                .setSession(key)
                .setActor("test")
                .setReason("lose")
                .build());
  }

  @Override
  public void beforeAll(ExtensionContext context) {
    if (ofClass == null) { // else the class is nested in that one
      ofClass = context.getUniqueId();
    }
    start();
  }

  @Override
  public void beforeEach(ExtensionContext context) {
    start();
  }

  @Override
  public void afterEach(ExtensionContext context) {
    if (ofClass == null) {
      close();
    }
  }

  @Override
  public void afterAll(ExtensionContext context) {
    if (context.getUniqueId().equals(ofClass)) {
      close();
      ofClass = null;
    }
  }
}
