package io.oncegate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotSame;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.params.provider.Arguments.arguments;

import io.grpc.ConnectivityState;
import io.oncegate.v1.IdempotencyServiceGrpc;
import io.oncegate.v1.IsProcessedRequest;
import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.UnaryOperator;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/** The options of a gate, without a server. */
final class SettingsTest {
  private static final String REMOTE = "gate:1";
  private static final String SECURE = "https://gate:1";
  private static final Path FILE = Path.of("f");

  private static Gate.Builder gate() {
    return Gate.builder().environment(name -> null);
  }

  @ParameterizedTest
  @CsvSource({
    "gate:7411, gate:7411, false",
    "http://gate:7411/, gate:7411, false",
    "https://gate:7411, gate:7411, true",
    "https://[::1]:7411/, [::1]:7411, true",
    "HTTPS://gate:7411, gate:7411, true",
    "unix:/run/oncegate.sock, unix:/run/oncegate.sock, false",
    "UNIX:/run/Oncegate.sock, unix:/run/Oncegate.sock, false",
    "dns:///gate:7411, dns:///gate:7411, false",
    "[fe80::1%eth0]:7411, [fe80::1%eth0]:7411, false",
  })
  void addresses(String address, String name, boolean tls) {
    Address found = Address.parse(address);
    assertEquals(name, found.name);
    assertEquals(tls, found.tls);
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "https://", "https://gate", "https://me:planted@gate:1", "http://gate:1/path", "https://:7411", ":7411", "gate",
        "gate:", "gate:0", "gate:65536", "::1:7411", "[::1]", "[127.0.0.1]:1", "[]:1", "https://gate:1,planted:1",
        "https:gate:1", "grpc://gate:1", "tcp://planted:1", "xds:///gate:1", "ipv4:", "ipv4:gate:1", "ipv4:127.0.0.1",
        "ipv4:127.0.0.1:0", "ipv4:127.0.0.1:1,", "ipv4:[::1]:1", "ipv6:127.0.0.1:1", "ipv6:::1", "evil:1/localhost",
        "unix:", "unix-abstract:planted", "dns:///", " gate:1", "gate:1\n"
      })
  void addressesThatAreRefused(String address) {
    MisconfiguredException problem = assertThrows(MisconfiguredException.class, () -> Address.parse(address));
    assertEquals("server", problem.option());
    assertFalse(problem.getMessage().contains("planted"), problem.getMessage());
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "localhost:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "http://LOCALHOST:1", "dns:///localhost:1",
        "ipv4:127.0.0.1:1,127.0.0.2:1", "ipv6:[::1]:1", "unix:/run/oncegate.sock", "[::ffff:127.0.0.1]:1"
      })
  void localAddresses(String address) {
    assertTrue(Address.parse(address).isLocal());
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "gate:1", "10.0.0.1:1", "0.0.0.0:1", "[::]:1", "dns:///gate:1", "localhost.evil:1", "ipv4:127.0.0.1:1,10.0.0.1:1"
      })
  void addressesOfOtherHosts(String address) {
    assertFalse(Address.parse(address).isLocal());
  }

  private static Arguments wrong(String name, String option, UnaryOperator<Gate.Builder> set) {
    return arguments(name, option, set);
  }

  static Stream<Arguments> wrongOptions() {
    return Stream.of(
        wrong("an empty address", "server", gate -> gate.server("")),
        wrong("an empty token", "token", gate -> gate.token("")),
        wrong("two tokens", "token", gate -> gate.token("planted").tokenFile(FILE)),
        wrong("a token with a space", "token", gate -> gate.token("planted two")),
        wrong("a token in plaintext", "server", gate -> gate.server(REMOTE).token("planted")),
        wrong("a token file in plaintext", "server", gate -> gate.server(REMOTE).tokenFile(FILE)),
        wrong("TLS settings without TLS", "tlsCa", gate -> gate.server(REMOTE).tlsCa(FILE)),
        wrong("a name without TLS", "tlsServerName", gate -> gate.tlsServerName("n")),
        wrong("an empty certificate", "tlsCert", gate -> gate.server(SECURE).tlsCert(Path.of(""), FILE)),
        wrong("a certificate without TLS", "tlsCert", gate -> gate.tlsCert(FILE, FILE)));
  }

  @ParameterizedTest(name = "{0}")
  @MethodSource("wrongOptions")
  void optionsThatAreRefused(String name, String option, UnaryOperator<Gate.Builder> set) {
    Gate.Builder builder = set.apply(gate());
    MisconfiguredException problem = assertThrows(MisconfiguredException.class, builder::build);
    assertEquals(option, problem.option());
    assertFalse(problem.getMessage().contains("planted"), problem.getMessage());
  }

  @Test
  void optionsThatAreTaken() {
    gate().server(SECURE).token("x").tlsCa(FILE).build().close();
    gate().token("x").build().close();
    gate().server(REMOTE).token("x").insecure().build().close();
  }

  @Test
  void environmentIsReadWhereNoOptionIsSet() {
    Map<String, String> of = Map.of("ONCEGATE_TLS_CA", "/ca.pem", "ONCEGATE_TOKEN_FILE", "/token");
    Gate.Builder plain = Gate.builder().environment(of::get);
    String problem = assertThrows(MisconfiguredException.class, plain::build).getMessage();
    assertTrue(problem.contains("ONCEGATE_TLS_CA"), problem);
    Gate.builder().environment(of::get).server(SECURE).token("x").build().close();
    Map<String, String> empty = Map.of("ONCEGATE_TLS_CA", "", "ONCEGATE_SERVER", "");
    Gate.builder().environment(empty::get).build().close();
  }

  @Test
  void graceThatIsTooShort() {
    Gate.Builder builder = gate().ttl(Duration.ofSeconds(10)).grace(Duration.ofSeconds(1));
    assertEquals("grace", assertThrows(InvalidException.class, builder::build).field());
  }

  @Test
  void tokenFileIsReadForEachCall(@TempDir Path folder) throws IOException {
    Path file = folder.resolve("token");
    Settings settings =
        new Settings(gate().tokenFile(file).settings(), System.getLogger(SettingsTest.class.getName()));
    assertThrows(MisconfiguredException.class, settings::currentToken);
    String[][] steps = {
      {"first\n", "first"}, {"second", "second"}, {"", "second"}, {"two words", "second"}, {"third", "third"}
    };
    for (String[] step : steps) {
      Files.writeString(file, step[0]);
      assertEquals(step[1], settings.currentToken());
    }
  }

  @Test
  void filesThatCannotBeUsed(@TempDir Path folder) throws IOException {
    Path large = Files.writeString(folder.resolve("large"), "x".repeat(1024 * 1024 + 1));
    Map<Path, String> problems =
        Map.of(folder, "not a regular file", large, "larger than 1 MiB", folder.resolve("none"), "does not exist");
    problems.forEach(
        (file, problem) -> {
          String said =
              assertThrows(
                      MisconfiguredException.class, () -> new WatchedFile("tokenFile", file.toString()).readText())
                  .getMessage();
          assertTrue(said.contains(problem), said);
        });
  }

  /** A process may be out of threads or memory for a while. The next call reads the file again. */
  @Test
  void readThatFails() {
    Deque<Error> problems =
        new ArrayDeque<>(List.of(new InternalError("no thread"), new InternalError("no memory")));
    WatchedFile file =
        new WatchedFile(
            "tokenFile",
            "token",
            path -> {
              if (!problems.isEmpty()) {
                throw problems.pop();
              }
              return "read".getBytes();
            },
            reading -> {
              if (problems.size() == 2) {
                throw problems.pop();
              }
              CompletableFuture.runAsync(reading);
            });
    for (String problem : List.of("no thread", "no memory")) {
      String said = assertThrows(MisconfiguredException.class, file::readText).getMessage();
      assertTrue(said.contains(problem), said);
    }
    assertEquals("read", file.readText());
  }

  /** A network file system that does not answer. Only the first call waits for it. */
  @Test
  void fileThatHangs() {
    CountDownLatch hangs = new CountDownLatch(1);
    AtomicInteger reads = new AtomicInteger();
    WatchedFile file =
        new WatchedFile(
            "tokenFile",
            "token",
            path -> {
              if (reads.incrementAndGet() == 2) {
                Waiting.uninterruptibly(nanos -> hangs.await(nanos, TimeUnit.NANOSECONDS), Long.MAX_VALUE / 4);
              }
              return ("read " + reads).getBytes();
            });
    assertEquals("read 1", file.readText());
    long began = System.nanoTime();
    for (int i = 0; i < 10; i++) {
      assertThrows(MisconfiguredException.class, file::readText);
    }
    assertTrue(System.nanoTime() - began < 2 * WatchedFile.READ_TIME);
    assertEquals(2, reads.get());
    hangs.countDown();
  }

  /** Each call that no answer comes to takes its connection out of use, and closes it. */
  @Test
  void connectionsThatAreSilentAreClosed() throws Exception {
    try (ServerSocket silent = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
        Gate gate = gate().server("127.0.0.1:" + silent.getLocalPort()).build()) {
      Link.Connection before = null;
      for (int i = 0; i < 3; i++) {
        Link.Connection used = connection(gate);
        assertNotSame(before, used);
        ask(gate);
        silent.accept().getOutputStream().write(EMPTY_SETTINGS);
        ready(used);
        ask(gate);
        assertTrue(used.channel.isShutdown());
        assertTrue(gate.link.size() <= 1, gate.link.size() + " connections");
        before = used;
      }
    }
  }

  /** After many streams at once, their connections are closed again. */
  @Test
  void connectionsOfAPeakAreClosed() {
    try (Gate gate = gate().server("127.0.0.1:1").build()) {
      List<Link.Connection> used = new ArrayList<>();
      for (int i = 0; i < 2000; i++) {
        used.add(gate.link.acquire(true).connection);
      }
      assertEquals(3, gate.link.size());
      used.forEach(gate.link::release);
      assertEquals(1, gate.link.size());
      assertEquals(2, used.stream().distinct().filter(connection -> connection.channel.isShutdown()).count());
    }
  }

  /** A call has less time than a slow connection needs. */
  @Test
  void connectionThatIsBeingMadeStays() throws Exception {
    try (ServerSocket silent = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
        Gate gate = gate().server("127.0.0.1:" + silent.getLocalPort()).build()) {
      Link.Connection used = connection(gate);
      ask(gate);
      ask(gate);
      assertSame(used, connection(gate));
      used.made -= Link.CONNECT_TIME;
      ask(gate);
      assertNotSame(used, connection(gate));
      assertTrue(used.channel.isShutdown());
    }
  }

  /** What a server of HTTP/2 sends first. */
  private static final byte[] EMPTY_SETTINGS = {0, 0, 0, 4, 0, 0, 0, 0, 0};

  /** The connection of the next call. */
  private static Link.Connection connection(Gate gate) {
    Link.Connection next = gate.link.acquire(false).connection;
    gate.link.release(next);
    return next;
  }

  private static void ready(Link.Connection connection) throws InterruptedException {
    ConnectivityState state;
    while ((state = connection.channel.getState(true)) != ConnectivityState.READY) {
      CountDownLatch changed = new CountDownLatch(1);
      connection.channel.notifyWhenStateChanged(state, changed::countDown);
      assertTrue(changed.await(60, TimeUnit.SECONDS), state.name());
    }
  }

  /** Makes a call that is not answered in time. */
  private static void ask(Gate gate) {
    IsProcessedRequest request = IsProcessedRequest.getDefaultInstance();
    assertThrows(
        Failure.class,
        () ->
            gate.link.callUntil(
                IdempotencyServiceGrpc.getIsProcessedMethod(), request, Clock.now() + Link.SHORTEST, Link.SHORTEST));
  }

  @Test
  void payloadThatIsCutKeepsItsNames() {
    String text = "x".repeat(Payload.LARGE_BODY);
    String body = "{\"issue\": {\"number\": 5, \"body\": \"" + text + "\"}, \"id\": 12345678901234567890}";
    assertEquals(
        "{\"issue\":{\"number\":5,\"body\":\"\"},\"id\":12345678901234567890}",
        new String(Payload.cut(body.getBytes())));
    byte[] form = ("payload=" + text).getBytes();
    assertEquals(form.length, Payload.cut(form).length);
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = ';',
      quoteCharacter = '\'',
      value = {
        "{\"type\": \"event_callback\"}; false",
        "{\"payload\": {\"type\": \"event_callback\"}}; false",
        "{\"type\": \"block_actions\"}; true",
        "{\"payload\": \"text\"}; true",
        "command=%2Fdeploy&trigger_id=1; true",
        "{\"type\": \"slash_commands\", \"payload\": {\"type\": \"x\"}}; true"
      })
  void slackDeliveriesThatAreSentOnce(String body, boolean once) {
    assertEquals(once, Delivery.slack(body).isSentOnce());
  }

  @Test
  void detailIsCutBetweenCharacters() {
    String detail = Turn.shortened("x" + "é".repeat(Turn.MAX_DETAIL));
    assertEquals(Turn.MAX_DETAIL - 1, detail.getBytes(java.nio.charset.StandardCharsets.UTF_8).length);
    assertTrue(detail.endsWith("é"));
  }

  @Test
  void uptimeIsRead() {
    assertEquals(350_735_470_000_000L, Clock.parse("350735.47 234388.90"));
    assertThrows(NumberFormatException.class, () -> Clock.parse("350735 1"));
  }
}
