package io.oncegate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.params.provider.Arguments.arguments;

import io.grpc.Metadata;
import io.grpc.Status;
import io.oncegate.conformance.QuietLogger;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.ResourceBundle;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/** How a turn is kept and lost, with a stream and renewals that the test scripts. */
final class HoldTest {
  private static final Failure CLAIM_LOST = Failure.of(Status.Code.FAILED_PRECONDITION, "lost", "CLAIM_LOST", null);
  private static final long SECOND = TimeUnit.SECONDS.toNanos(1);

  private final List<Gate> gates = new ArrayList<>();

  @AfterEach
  void close() {
    gates.forEach(Gate::close);
  }

  private Gate gate(Hooks hooks) {
    Gate gate = Gate.builder().environment(name -> null).server("127.0.0.1:1").hooks(hooks).logger(new QuietLogger()).build();
    gates.add(gate);
    return gate;
  }

  /** A gate of a server that does not answer. */
  private static Gate gate(ServerSocket silent) {
    return Gate.builder()
        .environment(name -> null)
        .server("127.0.0.1:" + silent.getLocalPort())
        .logger(new QuietLogger())
        .build();
  }

  private interface News {
    boolean read(Scripted hold) throws Failure;
  }

  private interface Renewal {
    void renew(Scripted hold) throws Failure, InterruptedException;
  }

  /** A hold over a stream of the test's own. */
  private static final class Scripted extends Hold {
    News news = hold -> false;
    Renewal renewal = hold -> {};
    boolean isStream;
    final CompletableFuture<String> givenBack = new CompletableFuture<>();

    Scripted(Gate gate) {
      super(gate, gate.config.copy());
      config.interrupts = false;
      enter();
      trust(SECOND * 3600, 0, Clock.now(), 0);
    }

    void trustFor(long nanos) {
      trust(nanos + config.margin(), 0, Clock.now(), 0);
    }

    @Override
    Stream<?, ?> open(long wait) {
      throw new AssertionError();
    }

    @Override
    boolean hasStream() {
      return isStream;
    }

    @Override
    boolean readAnswer(long until) {
      throw new AssertionError();
    }

    @Override
    boolean readNews(long until) throws Failure {
      return news.read(this);
    }

    @Override
    void makeSure() {}

    @Override
    void renew(long until, boolean interruptible) throws Failure, InterruptedException {
      renewal.renew(this);
    }

    @Override
    void giveBack(String detail) {
      givenBack.complete(detail);
    }

    @Override
    void startOver() {}

    @Override
    boolean isLease() {
      return false;
    }

    @Override
    LostException lostBy(LostReason reason, @Nullable Failure failure) {
      return new TurnLostException(reason, null, null);
    }

    @Override
    public void close() {
      finishByHolder();
    }
  }

  private static Arguments news(String name, News news) {
    return arguments(name, news);
  }

  static java.util.stream.Stream<Arguments> endsOfStreams() {
    return java.util.stream.Stream.of(
        news("finished", hold -> true),
        news(
            "broken after the end",
            hold -> {
              hold.finish(null);
              throw Failure.unavailable("broken");
            }),
        news(
            "broken",
            hold -> {
              throw Failure.unavailable("broken");
            }),
        news(
            "lost",
            hold -> {
              throw CLAIM_LOST;
            }),
        news(
            "a fault of the library",
            hold -> {
              throw new IllegalStateException("a fault");
            }));
  }

  private static void keep(Scripted hold) {
    hold.renewal =
        h -> {
          throw Failure.unavailable("no server");
        };
    hold.isStream = true;
    hold.keep();
  }

  /** An end waits for the keeper's answer. */
  @ParameterizedTest(name = "{0}")
  @MethodSource("endsOfStreams")
  void keeperAlwaysAnswersAnEnd(String name, News news) {
    Scripted hold = new Scripted(gate(new Hooks() {}));
    hold.news = news;
    keep(hold);
    assertEquals(0, hold.answered.getCount());
    assertEquals(name.equals("finished"), hold.isFinished());
    assertEquals(name.equals("finished"), hold.held());
  }

  @Test
  void endLearnsOfALossAtTheSameTime() {
    Scripted hold = new Scripted(gate(new Hooks() {}));
    hold.news =
        h -> {
          throw CLAIM_LOST;
        };
    keep(hold);
    assertEquals(CLAIM_LOST, hold.endFailure());
    assertEquals(LostReason.CLAIM_LOST, hold.lostReason());
  }

  /** Its keeper may stand still, such as by a file that hangs. */
  @Test
  void trustedEndDoesNotWaitForTheKeeper() throws Exception {
    Gate gate = gate(new Hooks() {});
    Scripted hold = new Scripted(gate);
    CountDownLatch hangs = new CountDownLatch(1);
    hold.renewal = h -> hangs.await();
    gate.start(hold, () -> hold.trustFor(SECOND / 10));
    hold.check();
    assertEquals(LostReason.EXPIRED, hold.lost().get(10, TimeUnit.SECONDS));
    assertTrue(hold.left().isNegative());
    hangs.countDown();
  }

  /** Within the margin before the end at the server. */
  @Test
  void looksAtTheClockWhenTheTrustedEndComes() {
    Scripted hold = new Scripted(gate(new Hooks() {}));
    assertTrue(hold.lookAtClock() > 3000 * SECOND);
    hold.trustFor(SECOND / 10);
    long first = hold.lookAtClock();
    assertTrue(first <= SECOND / 10, first + " ns");
    hold.trustFor(0);
    long second = hold.lookAtClock();
    assertTrue(second > 0 && second <= Waiting.CATCH_UP, second + " ns");
    assertTrue(hold.held());
    hold.trustFor(3600 * SECOND);
    assertTrue(hold.lookAtClock() > 3000 * SECOND);
    hold.lose(LostReason.EXPIRED);
    assertEquals(Long.MAX_VALUE, hold.lookAtClock());
  }

  @Test
  void trustedEndMoves() throws Exception {
    Gate gate = gate(new Hooks() {});
    Scripted hold = new Scripted(gate);
    CountDownLatch hangs = new CountDownLatch(1);
    hold.renewal =
        h -> {
          h.trustFor(SECOND * 3600);
          hangs.await();
        };
    gate.start(hold, () -> hold.trustFor(SECOND / 10));
    assertThrows(TimeoutException.class, () -> hold.lost().get(2, TimeUnit.SECONDS));
    hangs.countDown();
  }

  /** After a suspension of the machine, the trusted end is nearer than a timer of Java knows. */
  @Test
  void trustedEndComesNearer() throws Exception {
    Gate gate = gate(new Hooks() {});
    Scripted hold = new Scripted(gate);
    CountDownLatch hangs = new CountDownLatch(1);
    hold.renewal = h -> hangs.await();
    gate.start(hold, () -> {});
    hold.trustFor(0);
    assertEquals(LostReason.EXPIRED, assertThrows(TurnLostException.class, hold::check).reason());
    assertEquals(LostReason.EXPIRED, hold.lost().get(10, TimeUnit.SECONDS));
    hangs.countDown();
  }

  @Test
  void endReturnsAfterTheHooksOfALoss() throws Exception {
    CountDownLatch entered = new CountDownLatch(1);
    CountDownLatch leave = new CountDownLatch(1);
    Scripted hold =
        new Scripted(
            gate(
                new Hooks() {
                  @Override
                  public void onLost(LostReason reason) {
                    entered.countDown();
                    Waiting.uninterruptibly(nanos -> leave.await(nanos, TimeUnit.NANOSECONDS), 60 * SECOND);
                  }
                }));
    CompletableFuture<Void> lost = CompletableFuture.runAsync(() -> hold.lose(LostReason.EXPIRED));
    entered.await();
    CompletableFuture<Boolean> ended = CompletableFuture.supplyAsync(hold::finishByHolder);
    assertThrows(TimeoutException.class, () -> ended.get(100, TimeUnit.MILLISECONDS));
    leave.countDown();
    assertFalse(ended.get());
    lost.get();
  }

  /** An end that its holder has begun is given its time, also before it has sent anything. */
  @Test
  void closeWaitsForAnEndThatBegins() throws Exception {
    Gate gate = gate(new Hooks() {});
    Scripted hold = new Scripted(gate);
    gate.start(hold, () -> {});
    hold.finish(null);
    CompletableFuture<Void> closed = CompletableFuture.runAsync(gate::close);
    assertThrows(TimeoutException.class, () -> closed.get(100, TimeUnit.MILLISECONDS));
    assertFalse(gate.link.isDown());
    gate.forget(hold);
    closed.get();
  }

  @Test
  void hooksThatFailChangeNothing() throws Exception {
    Gate gate =
        gate(
            new Hooks() {
              @Override
              public void onLost(LostReason reason) {
                throw new IllegalStateException("a fault of the hook");
              }
            });
    Scripted hold = new Scripted(gate);
    gate.start(hold, () -> {});
    hold.closeByGate();
    assertEquals(LostReason.CLOSED, hold.lost().get(10, TimeUnit.SECONDS));
    assertEquals("the gate was closed", hold.givenBack.get(10, TimeUnit.SECONDS));
    assertTrue(gate.drain(Duration.ofSeconds(10)));
  }

  /** An end waits until the loss is reported, and must not wait for ever. */
  @Test
  void loggerThatFailsDoesNotKeepALossFromBeingReported() throws Exception {
    System.Logger failing =
        new QuietLogger() {
          @Override
          public void log(Level level, ResourceBundle bundle, String format, Object... params) {
            throw new AssertionError("a fault of the logger");
          }
        };
    Gate gate = Gate.builder().environment(name -> null).server("127.0.0.1:1").logger(failing).build();
    gates.add(gate);
    Scripted hold = new Scripted(gate);
    gate.start(hold, () -> {});
    CompletableFuture<Void> lost = CompletableFuture.runAsync(() -> hold.lose(LostReason.EXPIRED));
    assertEquals(LostReason.EXPIRED, hold.lost().get(10, TimeUnit.SECONDS));
    lost.get(10, TimeUnit.SECONDS);
    assertFalse(CompletableFuture.supplyAsync(hold::finishByHolder).get(10, TimeUnit.SECONDS));
    assertTrue(gate.drain(Duration.ofSeconds(10)));
  }

  /** A gate that drains is not a server that is unavailable: the handler must not run without a turn. */
  @Test
  void drainEndsARenewalBeforeTheBody() throws Exception {
    try (ServerSocket silent = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
        Gate gate = gate(silent)) {
      CompletableFuture<Turn> adopted = CompletableFuture.supplyAsync(() -> gate.adopt("turn"));
      silent.accept(); // it is renewing
      gate.drain(Duration.ZERO);
      ExecutionException refused = assertThrows(ExecutionException.class, () -> adopted.get(60, TimeUnit.SECONDS));
      assertInstanceOf(GateClosedException.class, refused.getCause());
    }
  }

  /** A turn that is lost meanwhile must not be taken for one that is still held. */
  @Test
  void detachOfATurnThatIsLostReportsTheLoss() throws Exception {
    try (ServerSocket silent = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
        Gate gate = gate(silent)) {
      Config options = gate.config.copy();
      options.interrupts = false;
      Turn turn = new Turn(gate, options, "turn");
      turn.enter();
      turn.trust(SECOND * 3600, 0, Clock.now(), 0);
      CompletableFuture<String> detached = CompletableFuture.supplyAsync(turn::detach);
      silent.accept(); // it is renewing
      turn.lose(LostReason.LEASE_LOST);
      ExecutionException refused = assertThrows(ExecutionException.class, () -> detached.get(60, TimeUnit.SECONDS));
      TurnLostException lost = assertInstanceOf(TurnLostException.class, refused.getCause());
      assertEquals(LostReason.LEASE_LOST, lost.reason());
    }
  }

  /** What a call brings after its turn has ended does not matter any more. */
  @Test
  void renewalEndsWithItsTurn() throws Exception {
    Stop stop = new Stop();
    CountDownLatch cancelled = new CountDownLatch(1);
    io.grpc.ClientCall<Object, Object> call =
        new io.grpc.ClientCall<>() {
          @Override
          public void start(Listener<Object> listener, Metadata headers) {}

          @Override
          public void request(int count) {}

          @Override
          public void cancel(@Nullable String message, @Nullable Throwable cause) {
            cancelled.countDown();
          }

          @Override
          public void halfClose() {}

          @Override
          public void sendMessage(Object message) {}
        };
    stop.add(call);
    assertFalse(stop.await(1));
    stop.stop();
    assertTrue(cancelled.await(10, TimeUnit.SECONDS));
    assertTrue(stop.await(1));
  }

  /** The details of a status may be those of another one, if a proxy has rewritten it. */
  @Test
  void detailsOfAnotherStatusSayNothing() {
    Metadata trailers = new Metadata();
    trailers.put(
        Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER),
        com.google.rpc.Status.newBuilder().setCode(5).build().toByteArray());
    Failure failure = Failure.read(Status.UNAVAILABLE.withDescription("rewritten"), trailers);
    assertTrue(failure.retryable());
    assertNull(failure.loss());
  }
}
