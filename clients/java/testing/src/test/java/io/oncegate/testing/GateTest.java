package io.oncegate.testing;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.oncegate.Delivery;
import io.oncegate.DuplicateException;
import io.oncegate.Gate;
import io.oncegate.GateClosedException;
import io.oncegate.Hooks;
import io.oncegate.LostReason;
import io.oncegate.Outcome;
import io.oncegate.ResultException;
import io.oncegate.Session;
import io.oncegate.Turn;
import io.oncegate.TurnLostException;
import io.oncegate.TurnRequest;
import io.oncegate.UnavailableException;
import java.io.IOException;
import java.net.SocketTimeoutException;
import java.time.Duration;
import java.util.HashSet;
import java.util.List;
import java.util.Optional;
import java.util.ResourceBundle;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;

/** A gate against the real server. */
final class GateTest {
  @RegisterExtension final OncegateServer server = OncegateServer.create();

  record Reply(String text) {}

  @Test
  void noThreadOutlivesClose() throws Exception {
    Set<Thread> before = Thread.getAllStackTraces().keySet();
    Gate gate = Gate.builder().server(server.address()).build();
    Turn turn = gate.turn(Delivery.of("T1", "E1").session("S1")).interruptOnLoss(false).begin();
    gate.close();
    gate.close();
    Set<Thread> left = new HashSet<>(Thread.getAllStackTraces().keySet());
    left.removeAll(before);
    for (Thread thread : left) { // one of Netty's ends a second later, and others are at their last instruction
      thread.join(TimeUnit.SECONDS.toMillis(10));
      assertFalse(thread.isAlive(), thread.getName());
    }
    assertEquals(LostReason.CLOSED, turn.lostReason());
    assertEquals(List.of(), server.turns("T1"));
    assertThrows(GateClosedException.class, () -> gate.mark(Delivery.of("T1", "E2")));
    assertThrows(GateClosedException.class, () -> gate.turn(Delivery.of("T1", "E2")).begin());
  }

  @Test
  void resultOfAnotherTypeIsReported() {
    Gate gate = server.gate();
    Delivery delivery = Delivery.of("T1", "E1");
    assertEquals(new Reply("hello"), gate.once(delivery, Reply.class, turn -> new Reply("hello")));
    assertEquals(new Reply("hello"), gate.once(delivery, Reply.class, turn -> new Reply("again")));
    DuplicateException refusal = assertThrows(DuplicateException.class, () -> gate.turn(delivery).begin());
    assertThrows(ResultException.class, () -> refusal.result(Integer.class));
  }

  @Test
  void lossInterruptsTheHandlerAndNothingElse() {
    Gate gate = server.gate();
    Delivery delivery = Delivery.of("T1", "E1").session("S1");
    TurnLostException lost =
        assertThrows(
            TurnLostException.class,
            () ->
                gate.turn(delivery)
                    .run(
                        String.class,
                        turn -> {
                          server.lose(Session.of("T1", "S1"));
                          TimeUnit.SECONDS.sleep(60);
                          return "not interrupted";
                        }));
    assertEquals(LostReason.LEASE_LOST, lost.reason());
    assertEquals(false, Thread.currentThread().isInterrupted());
  }

  @Test
  void resultThatCannotBeWrittenIsReported() {
    Gate gate = server.gate();
    Delivery delivery = Delivery.of("T1", "E1");
    assertThrows(ResultException.class, () -> gate.once(delivery, Optional.class, turn -> Optional.of(1)));
    assertThrows(ResultException.class, () -> gate.once(delivery, Double.class, turn -> Double.NaN));
    assertThrows(ResultException.class, () -> gate.once(delivery, Class.class, turn -> Gate.class));
    assertEquals("NOT_SEEN", gate.seen(delivery).state());
  }

  @Test
  void hooksThatFailChangeNothing() {
    Hooks failing =
        new Hooks() {
          @Override
          public void onBegin(Delivery delivery) {
            throw new IllegalStateException("a fault of the hook");
          }

          @Override
          public void onEnd(String outcome) {
            throw new IllegalStateException("a fault of the hook");
          }
        };
    try (Gate gate = Gate.builder().server(server.address()).hooks(failing).build()) {
      Outcome<String> out = gate.turn(Delivery.of("T1", "E1")).run(String.class, turn -> "done");
      assertInstanceOf(Outcome.Ran.class, out);
      IOException own =
          assertThrows(
              IOException.class,
              () ->
                  gate.turn(Delivery.of("T1", "E2"))
                      .run(
                          String.class,
                          turn -> {
                            throw new Nameless();
                          }));
      assertInstanceOf(Nameless.class, own);
      assertTrue(gate.drain(Duration.ofSeconds(10)));
    }
  }

  /** An exception that cannot even say what it is. */
  static final class Nameless extends IOException {
    private static final long serialVersionUID = 1;

    @Override
    public String toString() {
      throw new IllegalStateException("a fault of the exception");
    }
  }

  @Test
  void timeoutOfTheHandlerIsItsOwnErrorAlsoAfterALoss() {
    Gate gate = server.gate();
    assertThrows(
        SocketTimeoutException.class,
        () ->
            gate.turn(Delivery.of("T1", "E1").session("S1"))
                .interruptOnLoss(false)
                .run(
                    String.class,
                    turn -> {
                      server.lose(Session.of("T1", "S1"));
                      turn.lost().join();
                      throw new SocketTimeoutException("of another server");
                    }));
  }

  @Test
  void optionsThatAreSetLaterAreForAnotherTurn() {
    Gate gate = server.gate();
    TurnRequest request = gate.turn(Delivery.of("T1", "E1")).ttl(Duration.ofSeconds(60));
    try (Turn turn = request.begin()) {
      request.ttl(Duration.ofSeconds(1));
      turn.detach();
      assertTrue(turn.left().toSeconds() > 30, turn.left().toString());
    }
  }

  @Test
  void serverThatSpeaksNoTls() {
    try (Gate gate =
        Gate.builder().server("https://" + server.address()).patience(Duration.ofSeconds(1)).build()) {
      UnavailableException problem =
          assertThrows(UnavailableException.class, () -> gate.mark(Delivery.of("T1", "E1")));
      assertTrue(problem.getMessage().contains("no TLS"), problem.getMessage());
    }
  }

  @Test
  void secondEndSaysThatTheTurnHasEnded() {
    Gate gate = server.gate();
    try (Turn turn = gate.turn(Delivery.of("T1", "E1")).begin()) {
      turn.reject("no topic");
      TurnLostException ended = assertThrows(TurnLostException.class, () -> turn.succeed(1));
      assertEquals(LostReason.ENDED, ended.reason());
      assertFalse(ended.getMessage().contains("another run"), ended.getMessage());
    }
  }

  @Test
  void endWithoutADetailIsAnEnd() {
    Gate gate = server.gate();
    Delivery delivery = Delivery.of("T1", "E1");
    String none = new IllegalStateException().getMessage();
    try (Turn turn = gate.turn(delivery).begin()) {
      turn.fail(none);
    }
    try (Turn turn = gate.turn(delivery).begin()) {
      assertEquals(2, turn.attempt());
      turn.reject(none);
    }
    assertEquals("REJECTED", gate.seen(delivery).outcome());
  }

  @Test
  void loggerThatFailsChangesNothing() {
    System.Logger failing =
        new System.Logger() {
          @Override
          public String getName() {
            return "failing";
          }

          @Override
          public boolean isLoggable(Level level) {
            throw new IllegalStateException("a fault of the logger");
          }

          @Override
          public void log(Level level, ResourceBundle bundle, String text, Throwable thrown) {
            throw new IllegalStateException("a fault of the logger");
          }

          @Override
          public void log(Level level, ResourceBundle bundle, String format, Object... params) {
            throw new IllegalStateException("a fault of the logger");
          }
        };
    try (Gate gate = Gate.builder().server(server.address()).logger(failing).build()) {
      gate.logger().log(System.Logger.Level.ERROR, "a problem");
      gate.logger().log(System.Logger.Level.ERROR, "a problem", new IllegalStateException());
      gate.logger().log(System.Logger.Level.ERROR, () -> "a problem");
      assertEquals("failing", gate.logger().getName());
    }
  }

  @Test
  void endDuringACloseIsStoredOrLost() throws Exception {
    for (int round = 0; round < 50; round++) {
      Gate gate = server.gate();
      Turn turn = gate.turn(Delivery.of("T1", "E" + round)).interruptOnLoss(false).begin();
      CompletableFuture<Void> closed = CompletableFuture.runAsync(gate::close);
      try {
        turn.succeed(round);
      } catch (TurnLostException e) {
        assertEquals(LostReason.CLOSED, e.reason());
      }
      closed.get();
    }
    assertEquals(List.of(), server.turns("T1"));
  }

  @Test
  void listOfAddresses() {
    for (String list : List.of(server.address(), "127.0.0.1:1," + server.address())) { // nothing listens on port 1
      try (Gate gate = Gate.builder().server("ipv4:" + list).build();
          Turn turn = gate.turn(Delivery.of("T1", list)).begin()) {
        turn.succeed(null);
      }
    }
  }

  @Test
  void errorOfTheHandlerComesOutAndFailsTheTurn() {
    Gate gate = server.gate();
    Delivery delivery = Delivery.of("T1", "E1");
    assertThrows(
        StackOverflowError.class,
        () ->
            gate.turn(delivery)
                .run(
                    String.class,
                    turn -> {
                      throw new StackOverflowError();
                    }));
    try (Turn turn = gate.turn(delivery).begin()) {
      assertEquals(2, turn.attempt());
    }
  }
}
