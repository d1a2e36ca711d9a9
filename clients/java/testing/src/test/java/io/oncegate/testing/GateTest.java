package io.oncegate.testing;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.oncegate.Delivery;
import io.oncegate.DuplicateException;
import io.oncegate.Gate;
import io.oncegate.GateClosedException;
import io.oncegate.LostReason;
import io.oncegate.Outcome;
import io.oncegate.ResultException;
import io.oncegate.Session;
import io.oncegate.Turn;
import io.oncegate.TurnLostException;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.RegisterExtension;

/** A gate against the real server. */
final class GateTest {
  @RegisterExtension final OncegateServer server = OncegateServer.create();

  record Reply(String text) {}

  private static Outcome<Reply> quickStart(Gate gate, String body) {
    return gate.turn(Delivery.slack(body))
        .waitFor(Duration.ofSeconds(20))
        .run(Reply.class, turn -> new Reply("answer with fence " + (turn.fence() > 0)));
  }

  @Test
  void theQuickStartAnswersOnce() {
    String body =
        "{\"type\": \"event_callback\", \"team_id\": \"T1\", \"event_id\": \"Ev1\", \"event\": {\"type\":"
            + " \"app_mention\", \"channel\": \"C1\", \"ts\": \"17.5\", \"user\": \"U1\"}}";
    Gate gate = server.gate();
    Outcome.Ran<?> ran = assertInstanceOf(Outcome.Ran.class, quickStart(gate, body));
    assertEquals(new Reply("answer with fence true"), ran.value());
    Outcome.Duplicate<?> duplicate = assertInstanceOf(Outcome.Duplicate.class, quickStart(gate, body));
    assertEquals(ran.value(), duplicate.result());
  }

  @Test
  void noThreadOutlivesClose() {
    Gate gate = Gate.builder().server(server.address()).build();
    Turn turn = gate.turn(Delivery.of("T1", "E1").session("S1")).interruptOnLoss(false).begin();
    assertTrue(ownThreads() > 0);
    gate.close();
    gate.close();
    assertEquals(0, ownThreads());
    assertEquals(LostReason.CLOSED, turn.lostReason());
    assertEquals(List.of(), server.turns("T1"));
    assertThrows(GateClosedException.class, () -> gate.mark(Delivery.of("T1", "E2")));
    assertThrows(GateClosedException.class, () -> gate.turn(Delivery.of("T1", "E2")).begin());
  }

  private static long ownThreads() {
    return Thread.getAllStackTraces().keySet().stream()
        .filter(thread -> thread.isAlive() && thread.getName().startsWith("oncegate-"))
        .count();
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
