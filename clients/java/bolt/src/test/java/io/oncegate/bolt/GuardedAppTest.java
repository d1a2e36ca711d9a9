package io.oncegate.bolt;

import static io.oncegate.bolt.Bot.join;
import static io.oncegate.bolt.FakeSlack.click;
import static io.oncegate.bolt.FakeSlack.command;
import static io.oncegate.bolt.FakeSlack.mention;
import static io.oncegate.bolt.FakeSlack.message;
import static io.oncegate.bolt.FakeSlack.over;
import static io.oncegate.bolt.FakeSlack.post;
import static io.oncegate.bolt.FakeSlack.send;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.slack.api.app_backend.events.EventHandler;
import com.slack.api.app_backend.events.handler.AppMentionHandler;
import com.slack.api.app_backend.events.payload.AppMentionPayload;
import com.slack.api.app_backend.events.payload.FunctionExecutedPayload;
import com.slack.api.app_backend.events.payload.MessagePayload;
import com.slack.api.bolt.App;
import com.slack.api.bolt.WebEndpoint;
import com.slack.api.bolt.context.Context;
import com.slack.api.bolt.handler.BoltEventHandler;
import com.slack.api.bolt.middleware.builtin.Assistant;
import com.slack.api.bolt.request.RequestType;
import com.slack.api.bolt.response.Response;
import com.slack.api.model.event.AppMentionEvent;
import com.slack.api.model.event.Event;
import com.slack.api.model.event.FunctionExecutedEvent;
import com.slack.api.model.event.MessageEvent;
import io.oncegate.Delivery;
import io.oncegate.Gate;
import io.oncegate.Hooks;
import io.oncegate.LostReason;
import io.oncegate.RejectException;
import io.oncegate.Session;
import io.oncegate.Turn;
import io.oncegate.Unavailability;
import io.oncegate.testing.OncegateServer;
import java.io.IOException;
import java.lang.reflect.Field;
import java.lang.reflect.InvocationHandler;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Proxy;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Collections;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** An app of Bolt against the real server. */
@Timeout(value = 120, threadMode = Timeout.ThreadMode.SEPARATE_THREAD)
final class GuardedAppTest {
  @RegisterExtension final OncegateServer server = OncegateServer.durable();
  private final Bot bot = new Bot();
  private final Log log = new Log();
  private FakeSlack slack;

  @BeforeEach
  void open() throws IOException {
    slack = new FakeSlack();
  }

  @AfterEach
  void close() {
    slack.close();
  }

  private GuardedApp app(Gate gate, GuardOptions options) {
    GuardedApp app = new GuardedApp(slack.config(), gate, options);
    app.event(AppMentionEvent.class, (payload, context) -> bot.handle(context));
    app.command("/deploy", (request, context) -> bot.handle(context));
    app.blockAction("approve", (request, context) -> bot.handle(context));
    app.start();
    return app;
  }

  /** A gate whose events are free soon after a loss: the claim outlives its session. */
  private Gate hasty() {
    return Gate.builder().server(server.address()).ttl(Duration.ofSeconds(2)).logger(log).build();
  }

  private GuardedApp app() {
    return app(server.gate(), new GuardOptions());
  }

  /** A gate that writes to the log. */
  private Gate logging() {
    return Gate.builder().server(server.address()).logger(log).build();
  }

  private static void refused(Response response) {
    assertEquals(503, response.getStatusCode());
    assertTrue(Integer.parseInt(response.getHeaders().get("Retry-After").get(0)) >= 1);
  }

  private static void accepted(Response response) {
    assertEquals(200, response.getStatusCode());
  }

  private static String state(Gate gate, String body) {
    return gate.seen(Delivery.slack(body)).state();
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void anEventIsHandledOnce(boolean socketMode) throws Exception {
    GuardedApp app = app();
    String event = mention("Ev1");
    CompletableFuture<Response> first = slack.begin(app, event);
    assertTrue(bot.entered().held());
    refused(app.run(over(socketMode, app, event, 0)));
    bot.leave();
    accepted(first.get());
    accepted(app.run(over(socketMode, app, event, 1)));
    bot.ran(1);
  }

  @Test
  void anExceptionIsDeliveredAgain() throws Exception {
    GuardedApp app = app();
    String event = mention("Ev1");
    bot.leave(
        context -> {
          throw new IOException("no disk");
        });
    assertEquals("no disk", assertThrows(IOException.class, () -> post(app, event)).getMessage());
    bot.leave(context -> Response.error(500));
    assertEquals(404, post(app, event).getStatusCode()); // Bolt looks for another handler
    bot.leave(
        context -> {
          throw new RejectException("no topic");
        });
    accepted(post(app, event));
    accepted(post(app, event));
    bot.ran(3);
    assertEquals(1, bot.entered().attempt());
    assertEquals(2, bot.entered().attempt());
    assertEquals(3, bot.entered().attempt());
  }

  @Test
  void anErrorFailsTheTurn() throws Exception {
    Gate gate = server.gate();
    GuardedApp app = app(gate, new GuardOptions());
    bot.leave(
        context -> {
          throw new StackOverflowError();
        });
    // An error would end the client of Socket Mode.
    ExecutionException failed = assertThrows(ExecutionException.class, () -> post(app, mention("Ev1")));
    assertInstanceOf(StackOverflowError.class, failed.getCause());
    assertEquals("NOT_SEEN", state(gate, mention("Ev1")));
  }

  @Test
  void aBusyThreadQueues() throws Exception {
    BlockingQueue<Integer> queued = new LinkedBlockingQueue<>();
    Hooks hooks =
        new Hooks() {
          @Override
          public void onQueued(int position) {
            queued.add(position);
          }
        };
    try (Gate gate = Gate.builder().server(server.address()).hooks(hooks).build()) {
      GuardedApp app = app(gate, new GuardOptions());
      CompletableFuture<Response> first = slack.begin(app, mention("Ev1"));
      Turn held = bot.entered();
      accepted(post(app, mention("Ev2")));
      assertEquals(1, queued.poll(60, TimeUnit.SECONDS));
      bot.leave();
      accepted(first.get());
      assertNotEquals(held.id(), bot.entered().id());
      bot.leave();
      join(app);
      bot.ran(2);
      assertTrue(server.turns("T1").isEmpty());
      accepted(post(app, mention("Ev2"), 1));
      bot.ran(2);
    }
  }

  @Test
  void aClosedGateEndsTheQueue() throws Exception {
    Gate gate = server.gate();
    GuardedApp app = app(gate, new GuardOptions());
    try (Turn other = server.gate().turn(Delivery.slack(mention("Ev1"))).begin()) {
      assertTrue(other.held());
      accepted(post(app, mention("Ev2")));
      gate.close();
      join(app);
    }
    refused(post(app, mention("Ev3"), 3));
    bot.ran(0);
  }

  @Test
  void aWaitEnds() throws Exception {
    try (Gate gate = logging();
        Turn other = server.gate().turn(Delivery.slack(mention("Ev1"))).begin()) {
      GuardedApp app = app(gate, new GuardOptions().waitFor(Duration.ofMillis(100)));
      assertTrue(other.held());
      accepted(post(app, mention("Ev2")));
      join(app);
      bot.ran(0);
      log.has("ERROR acknowledged delivery dropped: turn not granted: Event Ev2", "BusyException");
    }
  }

  @Test
  void withoutAWaitABusyEventIsRefused() throws Exception {
    try (Gate gate = logging()) {
      GuardedApp app = app(gate, new GuardOptions().waitFor(Duration.ZERO));
      try (Turn other = server.gate().turn(Delivery.slack(mention("Ev1"))).begin()) {
        assertTrue(other.held());
        refused(post(app, mention("Ev2")));
        accepted(post(app, mention("Ev3"), 3)); // there is no further delivery
        join(app);
        bot.ran(0);
        log.has("acknowledged delivery dropped", "Ev3");
      }
      bot.leave();
      accepted(post(app, mention("Ev2"), 1));
      bot.ran(1);
    }
  }

  @Test
  void anyWaitIsAccepted() throws Exception {
    GuardedApp app = app(server.gate(), new GuardOptions().waitFor(Duration.ofDays(365 * 300)));
    try (Turn other = server.gate().turn(Delivery.slack(mention("Ev1"))).begin()) {
      assertTrue(other.held());
      accepted(post(app, mention("Ev2")));
    }
    bot.leave();
    join(app);
    bot.ran(1);
    assertThrows(IllegalArgumentException.class, () -> new GuardOptions().waitFor(Duration.ofNanos(-1)));
    assertThrows(NullPointerException.class, () -> new GuardOptions().waitFor(null));
  }

  /** Both match, and the first one passes it on. */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void anAcknowledgedDeliveryComesToAllItsHandlers(boolean ackFirst) throws Exception {
    Gate gate = server.gate();
    GuardedApp app = app(gate, ackFirst ? new GuardOptions().ackFirst() : new GuardOptions());
    AtomicInteger middleware = new AtomicInteger();
    app.use(
        (request, response, chain) -> {
          middleware.incrementAndGet();
          return chain.next(request);
        });
    app.message(Pattern.compile("deploy .*"), (payload, context) -> bot.handle(context));
    app.message(Pattern.compile("nothing"), (payload, context) -> bot.handle(context));
    app.message(Pattern.compile(".* now"), (payload, context) -> bot.handle(context));
    String event = message("Ev2", "deploy now");
    try (Turn other = ackFirst ? null : server.gate().turn(Delivery.slack(mention("Ev1"))).begin()) {
      assertEquals(!ackFirst, other != null && other.held());
      accepted(post(app, event));
    }
    bot.leave(context -> null);
    bot.leave();
    join(app);
    bot.ran(2);
    assertEquals(bot.entered().id(), bot.entered().id());
    assertEquals(1, middleware.get());
    assertEquals("SUCCEEDED", gate.seen(Delivery.slack(event)).outcome());
  }

  @Test
  void anAcknowledgedDeliveryThatIsNotHandledIsLogged() throws Exception {
    try (Gate gate = logging()) {
      GuardedApp app = app(gate, new GuardOptions().ackFirst());
      bot.leave(context -> Response.error(500));
      accepted(post(app, mention("Ev1")));
      join(app);
      log.has("ERROR acknowledged delivery dropped: no handler returned a status of 2xx: Event Ev1");
      bot.leave(
          context -> {
            throw new IOException("no disk");
          });
      accepted(post(app, mention("Ev2")));
      join(app);
      log.has("ERROR acknowledged delivery dropped: handler failed: Event Ev2", "no disk");
      bot.leave(
          context -> {
            throw new StackOverflowError();
          });
      accepted(post(app, command("1")));
      join(app);
      log.has("ERROR acknowledged delivery dropped: handler failed: Command", "StackOverflowError");
      bot.leave(
          context -> {
            throw new RejectException("no topic");
          });
      accepted(post(app, mention("Ev3")));
      join(app);
      log.hasNot("Ev3");
      bot.ran(4);
      for (String body : List.of(mention("Ev1"), mention("Ev2"), command("1"))) {
        assertEquals("NOT_SEEN", state(gate, body));
      }
    }
  }

  @Test
  void aDrainRefusesNewDeliveriesAndKeepsThoseThatWait() throws Exception {
    GuardedApp app = app();
    CompletableFuture<Response> first = slack.begin(app, mention("Ev1"));
    bot.entered();
    accepted(post(app, mention("Ev2"))); // it waits for the thread
    assertFalse(app.drain(Duration.ZERO));
    CompletableFuture<Boolean> drained = new CompletableFuture<>();
    Thread draining =
        new Thread(
            () -> {
              try {
                drained.complete(app.drain(Duration.ofSeconds(60)));
              } catch (InterruptedException e) {
                drained.completeExceptionally(e);
              }
            });
    draining.start();
    refused(post(app, mention("Ev3")));
    refused(post(app, mention("Ev3"), 3)); // also what Slack does not deliver again
    refused(post(app, command("1")));
    refused(app.run(over(true, app, click("1"), 0)));
    assertEquals(404, post(app, message("Ev4", "no handler matches")).getStatusCode());
    assertFalse(drained.isDone());
    bot.leave();
    accepted(first.get());
    bot.entered();
    assertFalse(drained.isDone());
    bot.leave();
    assertTrue(drained.get());
    draining.join();
    bot.ran(2);
    refused(post(app, mention("Ev3")));
  }

  @Test
  void moreBackgroundDeliveriesAreRefused() throws Exception {
    try (Gate gate = logging()) {
      GuardedApp app = app(gate, new GuardOptions().ackFirst().maxBackgroundDeliveries(1));
      accepted(post(app, command("1")));
      bot.entered();
      refused(post(app, command("2")));
      log.has("ERROR delivery refused: maxBackgroundDeliveries (1) reached");
      bot.leave();
      join(app);
      bot.ran(1);
    }
    assertThrows(IllegalArgumentException.class, () -> new GuardOptions().maxBackgroundDeliveries(0));
  }

  @Test
  void withoutAThreadADeliveryIsRefused() throws Exception {
    try (Gate gate = logging()) {
      Guard guard =
          new Guard(
              gate,
              new GuardOptions(),
              work -> {
                throw new OutOfMemoryError("unable to create native thread");
              });
      assertFalse(guard.spawn(() -> {}));
      assertTrue(guard.join(Duration.ZERO));
      log.has("ERROR delivery refused: no thread can be made");
    }
  }

  @Test
  void aPauseKeepsNothing() throws Exception {
    Gate gate = server.gate();
    Guard guard = new Guard(gate, new GuardOptions());
    Field field = Gate.class.getDeclaredField("closing");
    field.setAccessible(true);
    CompletableFuture<?> closing = (CompletableFuture<?>) field.get(gate);
    int before = closing.getNumberOfDependents();
    for (int i = 0; i < 3; i++) {
      guard.pause(Duration.ofMillis(1));
    }
    assertEquals(before, closing.getNumberOfDependents());
    gate.close();
    guard.pause(Duration.ofDays(365)); // it ends with the gate
  }

  /** Deliveries of others are handled in the same thread later. */
  @Test
  void aBackgroundThreadInheritsNothingOfItsFirstDelivery() throws Exception {
    GuardedApp app = app(server.gate(), new GuardOptions().ackFirst());
    InheritableThreadLocal<String> user = new InheritableThreadLocal<>();
    CompletableFuture<String> userInside = new CompletableFuture<>();
    CompletableFuture<ClassLoader> loaderInside = new CompletableFuture<>();
    bot.leave(
        context -> {
          userInside.complete(user.get());
          loaderInside.complete(Thread.currentThread().getContextClassLoader());
          return context.ack();
        });
    ClassLoader ofApp = Thread.currentThread().getContextClassLoader();
    user.set("U1");
    Thread.currentThread().setContextClassLoader(new ClassLoader(ofApp) {});
    try {
      accepted(post(app, command("1")));
    } finally {
      Thread.currentThread().setContextClassLoader(ofApp);
    }
    join(app);
    assertNull(userInside.get());
    assertEquals(ofApp, loaderInside.get());
  }

  @ParameterizedTest
  @CsvSource({"false, false", "false, true", "true, false", "true, true"})
  void theLastRetryWaitsForTheRunBeforeIt(boolean socketMode, boolean fails) throws Exception {
    GuardedApp app = app();
    String event = mention("Ev1");
    CompletableFuture<Response> first = slack.begin(socketMode, app, event);
    bot.entered();
    refused(send(socketMode, app, event, 1));
    refused(send(socketMode, app, event, 2));
    accepted(send(socketMode, app, event, 3));
    if (fails) {
      bot.leave(
          context -> {
            throw new IOException("no disk");
          });
      assertThrows(ExecutionException.class, first::get);
      assertEquals(2, bot.entered().attempt());
      bot.leave();
    } else {
      bot.leave();
      accepted(first.get());
    }
    join(app);
    bot.ran(fails ? 2 : 1);
  }

  @Test
  void theLastRetryWaitsForTheServer() throws Exception {
    GuardedApp app = app();
    server.kill();
    accepted(post(app, mention("Ev1"), 3));
    server.start();
    bot.leave();
    join(app);
    bot.ran(1);
  }

  @Test
  void withoutTheServer() throws Exception {
    try (Gate gate = Gate.builder().server(server.address()).onUnavailable(Unavailability.RUN).build()) {
      GuardedApp app = app(gate, new GuardOptions());
      GuardedApp closed = app();
      server.kill();
      refused(post(app, mention("Ev1"))); // Slack delivers it again
      refused(post(closed, command("1")));
      bot.ran(0);
      bot.leave();
      accepted(post(app, command("1"))); // Slack does not
      assertFalse(bot.entered().held());
      bot.ran(1);
    }
  }

  @Test
  void aHandlerMayEndItsTurn() throws Exception {
    Gate gate = server.gate();
    GuardedApp app = app(gate, new GuardOptions());
    bot.leave(
        context -> {
          turnOf(context).succeed("done");
          return context.ack();
        });
    accepted(post(app, mention("Ev1")));
    assertEquals("done", gate.seen(Delivery.slack(mention("Ev1"))).result(String.class));
    bot.leave(
        context -> {
          turnOf(context).reject("no topic");
          return context.ack();
        });
    accepted(post(app, mention("Ev2")));
    assertEquals("REJECTED", gate.seen(Delivery.slack(mention("Ev2"))).outcome());
  }

  private static Turn turnOf(Context context) {
    Turn turn = Turns.of(context);
    assertNotNull(turn);
    return turn;
  }

  @Test
  void aLossInterruptsTheHandler() throws Exception {
    try (Gate gate = hasty()) {
      GuardedApp app = app(gate, new GuardOptions());
      CompletableFuture<Response> first = slack.begin(app, mention("Ev1"));
      Turn lost = bot.entered();
      server.lose(Session.thread("T1", "C1", "17.5"));
      ExecutionException failed = assertThrows(ExecutionException.class, first::get);
      assertInstanceOf(InterruptedException.class, failed.getCause().getCause());
      assertEquals(LostReason.LEASE_LOST, lost.lostReason());
      bot.leave();
      accepted(post(app, mention("Ev1"), 3)); // the last retry waits for the event
      join(app);
      bot.ran(2);
    }
  }

  @Test
  void aHandlerThatIgnoresItsLossIsNotAcknowledged() throws Exception {
    try (Gate gate = hasty()) {
      GuardedApp app = app(gate, new GuardOptions().turns(turn -> turn.interruptOnLoss(false)));
      CompletableFuture<Response> first = slack.begin(app, mention("Ev1"));
      CompletableFuture<LostReason> loss = bot.entered().lost();
      server.lose(Session.thread("T1", "C1", "17.5"));
      assertEquals(LostReason.LEASE_LOST, loss.get());
      bot.leave();
      refused(first.get());
      bot.leave();
      accepted(post(app, mention("Ev1"), 3));
      join(app);
      bot.ran(2);
    }
  }

  @Test
  void anEventWithoutAHandlerHasNoTurn() throws Exception {
    Gate gate = server.gate();
    GuardedApp app = app(gate, new GuardOptions());
    app.message(Pattern.compile("deploy .*"), (payload, context) -> bot.handle(context));
    app.message(Pattern.compile(".* now"), (payload, context) -> bot.handle(context));
    // The same message comes as an event of its own for each subscription.
    assertEquals(404, post(app, message("Ev1", "hello")).getStatusCode());
    try (Turn turn = gate.turn(Delivery.slack(message("Ev1", "hello"))).begin()) {
      assertEquals(1, turn.attempt());
    }
    bot.leave();
    accepted(post(app, message("Ev2", "deploy it")));
    bot.ran(1);
    // Both match; the first one passes it on.
    bot.leave(context -> null);
    bot.leave();
    accepted(post(app, message("Ev3", "deploy now")));
    bot.ran(3);
    bot.entered();
    assertEquals(bot.entered().id(), bot.entered().id());
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void aCommandIsAnsweredByItsHandler(boolean socketMode) throws Exception {
    GuardedApp app = app();
    CompletableFuture<Response> first = slack.begin(socketMode, app, command("1"));
    bot.entered();
    accepted(send(socketMode, app, command("1"), 0)); // another run handles it
    bot.leave(context -> Response.ok("done"));
    assertEquals("done", first.get().getBody());
    assertNull(send(socketMode, app, command("1"), 0).getBody());
    bot.ran(1);
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void aBusyInteractionIsReported(boolean socketMode) throws Exception {
    BlockingQueue<RequestType> reported = new LinkedBlockingQueue<>();
    GuardOptions options =
        new GuardOptions()
            .onBusy(
                (request, busy) -> {
                  reported.add(request.getRequestType());
                  throw new IOException("Slack does not answer");
                });
    GuardedApp app = app(server.gate(), options);
    CompletableFuture<Response> first = slack.begin(app, mention("Ev1"));
    bot.entered();
    accepted(send(socketMode, app, click("1"), 0));
    assertEquals(RequestType.BlockAction, reported.poll(60, TimeUnit.SECONDS));
    accepted(post(app, mention("Ev2"))); // an event is not reported
    bot.leave();
    accepted(first.get());
    bot.leave();
    bot.leave();
    join(app);
    bot.ran(3);
    assertTrue(reported.isEmpty());
  }

  @Test
  void acknowledgedFirst() throws Exception {
    Gate gate = server.gate();
    GuardedApp app = app(gate, new GuardOptions().ackFirst(RequestType.Command));
    accepted(post(app, command("1")));
    assertTrue(bot.entered().held());
    assertFalse(app.join(Duration.ofMillis(50)));
    accepted(post(app, command("1"))); // another run handles it
    bot.leave(
        context -> {
          throw new IOException("no disk");
        });
    join(app);
    assertEquals("NOT_SEEN", state(gate, command("1")));
    accepted(post(app, command("1")));
    bot.leave(
        context -> {
          throw new RejectException("no topic");
        });
    join(app);
    assertEquals("REJECTED", gate.seen(Delivery.slack(command("1"))).outcome());
    bot.ran(2);
    CompletableFuture<Response> event = slack.begin(app, mention("Ev1")); // of another type
    bot.entered();
    assertFalse(event.isDone());
    bot.leave();
    accepted(event.get());
  }

  /** Slack does not deliver the event again. */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void acknowledgedFirstAndLost(boolean interrupts) throws Exception {
    try (Gate gate = hasty()) {
      GuardedApp app = app(gate, new GuardOptions().ackFirst().turns(turn -> turn.interruptOnLoss(interrupts)));
      accepted(post(app, mention("Ev1")));
      Turn turn = bot.entered();
      refused(post(app, mention("Ev1"), 1)); // the acknowledgement came late
      lose(turn);
      if (!interrupts) {
        bot.leave();
      }
      lose(bot.entered()); // once more
      if (!interrupts) {
        bot.leave();
      }
      assertEquals(3, bot.entered().attempt());
      bot.leave();
      join(app);
      bot.ran(3);
      assertEquals("SUCCEEDED", gate.seen(Delivery.slack(mention("Ev1"))).outcome());
      log.has("WARNING turn lost (LEASE_LOST); the delivery needs another turn: Event Ev1");
      log.hasNot("dropped");
    }
  }

  private void lose(Turn turn) {
    server.lose(Session.thread("T1", "C1", "17.5"));
    assertEquals(LostReason.LEASE_LOST, turn.lost().join());
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void theLastRetryIsLost(boolean interrupts) throws Exception {
    try (Gate gate = hasty()) {
      GuardedApp app = app(gate, new GuardOptions().turns(turn -> turn.interruptOnLoss(interrupts)));
      CompletableFuture<Response> last = slack.begin(app, mention("Ev1"), 3);
      lose(bot.entered());
      if (!interrupts) {
        bot.leave();
      }
      accepted(last.get());
      bot.leave();
      join(app);
      bot.ran(2);
      log.has("WARNING turn lost (LEASE_LOST); the delivery needs another turn: Event Ev1");
      log.hasNot("dropped");
    }
  }

  /** The event may be handled, or not. */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void theEndOfTheLastRetryHasNoAnswer(boolean byHandler) throws Exception {
    try (Gate gate = hasty()) {
      GuardedApp app = app(gate, new GuardOptions());
      CompletableFuture<Response> last = slack.begin(app, mention("Ev1"), 3);
      bot.entered();
      server.kill();
      bot.leave(
          context -> {
            if (byHandler) {
              turnOf(context).succeed(null);
            }
            return context.ack();
          });
      accepted(last.get());
      server.start();
      bot.leave();
      join(app);
      bot.ran(2);
      log.has("WARNING end of the turn not answered; the delivery needs another turn: Event Ev1");
      log.hasNot("dropped");
    }
  }

  @Test
  void afterTheWaitALostDeliveryIsDropped() throws Exception {
    try (Gate gate = hasty()) {
      GuardedApp app = app(gate, new GuardOptions().ackFirst().waitFor(Duration.ofMillis(1)));
      accepted(post(app, mention("Ev1")));
      lose(bot.entered());
      join(app);
      bot.ran(1);
      log.has("ERROR acknowledged delivery dropped: turn not granted: Event Ev1", "InProgressException");
    }
  }

  @Test
  void whatIsLostWithItsGateIsDropped() throws Exception {
    try (Gate gate = hasty()) {
      GuardedApp app = app(gate, new GuardOptions().ackFirst());
      accepted(post(app, mention("Ev1")));
      bot.entered();
      gate.close();
      join(app);
      bot.ran(1);
      log.has("ERROR acknowledged delivery dropped: turn lost (CLOSED): Event Ev1", "interrupted");
      log.hasNot("another turn");
    }
  }

  @Test
  void lossesAfterWhichAnotherTurnMayBeGranted() {
    for (LostReason loss : LostReason.values()) {
      boolean expected = Set.of(LostReason.CLAIM_LOST, LostReason.LEASE_LOST, LostReason.EXPIRED).contains(loss);
      assertEquals(expected, Policy.isTemporary(loss), loss.name());
    }
  }

  @Test
  void whatNamesNoEventPassesBy() throws Exception {
    GuardedApp app = app();
    server.kill();
    Response asked = post(app, "{\"type\": \"url_verification\", \"token\": \"x\", \"challenge\": \"abc\"}");
    assertEquals("abc", asked.getBody());
    String stamp = String.valueOf(System.currentTimeMillis() / 1000);
    assertEquals(401, app.run(FakeSlack.request(app, mention("Ev1"), stamp, "v0=0", 0)).getStatusCode());
    bot.ran(0);
  }

  @Test
  void aMiddlewareCannotAnswerForTheGuard() throws Exception {
    GuardedApp app = app();
    app.use(
        (request, response, chain) -> {
          try {
            return chain.next(request);
          } catch (RuntimeException e) {
            return Response.ok();
          }
        });
    CompletableFuture<Response> first = slack.begin(app, mention("Ev1"));
    bot.entered();
    refused(post(app, mention("Ev1")));
    bot.leave();
    accepted(first.get());
  }

  @Test
  void aHandlerInTheThreadOfAMiddlewareDoesNotRun() {
    GuardedApp app = app();
    app.use(
        (request, response, chain) ->
            CompletableFuture.supplyAsync(
                    () -> {
                      try {
                        return chain.next(request);
                      } catch (Exception e) {
                        throw new IllegalStateException(e);
                      }
                    })
                .join());
    Exception refused = assertThrows(Exception.class, () -> post(app, mention("Ev1")));
    assertTrue(refused.toString().contains("another thread"), refused.toString());
    bot.ran(0);
  }

  @Test
  void anAppStartsWithoutTheServer() throws Exception {
    server.kill();
    try (Gate gate = Gate.builder().server(server.address()).patience(Duration.ofMillis(10)).build()) {
      GuardedApp app = app(gate, new GuardOptions());
      assertEquals(App.Status.Running, app.status());
      refused(post(app, mention("Ev1")));
      server.start();
      bot.leave();
      accepted(post(app, mention("Ev1"), 3)); // it waits for the connection
      join(app);
      bot.ran(1);
    }
  }

  @Test
  void anAppIsStartedWithAWrongToken(@TempDir Path folder) throws Exception {
    List<String> known = token();
    Path auth =
        Files.writeString(
            folder.resolve("auth.toml"),
            String.format("[[principal]]%nname = \"bot\"%nrole = \"bot\"%nteams = [\"T1\"]%n%s%n", known.get(1)));
    try (OncegateServer secured = OncegateServer.create("--auth", auth.toString()).start();
        Gate right = Gate.builder().server(secured.address()).token(known.get(0)).logger(log).build();
        Gate wrong = Gate.builder().server(secured.address()).token(token().get(0)).logger(log).build()) {
      GuardedApp app = app(right, new GuardOptions());
      log.hasNot("denies");
      bot.leave();
      accepted(post(app, mention("Ev1")));
      app(wrong, new GuardOptions());
      log.has("WARNING the server denies this app: UNAUTHENTICATED");
    }
  }

  /** A token, and the line by which a server knows it. */
  private static List<String> token() throws IOException {
    Process made = new ProcessBuilder(System.getenv("ONCEGATE_BINARY"), "token", "new").start();
    return new String(made.getInputStream().readAllBytes(), StandardCharsets.UTF_8).strip().lines().toList();
  }

  @Test
  void handlersAreRegisteredByTwoThreads() throws Exception {
    CompletableFuture<Turn> turn = new CompletableFuture<>();
    GuardedApp app =
        new GuardedApp(slack.config(), server.gate()) {
          @Override
          protected <E extends Event> App event(Class<E> type, boolean allowMultiple, BoltEventHandler<E> handler) {
            if (type.equals(MessageEvent.class)) { // it is called by message; another thread comes in between
              CompletableFuture.runAsync(
                      () ->
                          super.event(
                              AppMentionEvent.class,
                              true,
                              (payload, context) -> {
                                turn.complete(Turns.of(context));
                                return context.ack();
                              }))
                  .join();
            }
            return super.event(type, allowMultiple, handler);
          }
        };
    app.message("hi", (payload, context) -> context.ack());
    accepted(post(app, mention("Ev1")));
    assertNotNull(turn.getNow(null), "the handler of the other thread is not guarded");
  }

  @Test
  void whatCannotBeGuardedIsNotAccepted() {
    GuardedApp app = app();
    assertThrows(UnsupportedOperationException.class, () -> app.assistant(new Assistant()));
    AppMentionHandler legacy =
        new AppMentionHandler() {
          @Override
          public void handle(AppMentionPayload payload) {}
        };
    assertThrows(UnsupportedOperationException.class, () -> app.event(legacy));
  }

  /** A new method of Bolt would have handlers that are not guarded. */
  @Test
  void allHandlersAreGuarded() throws Exception {
    Set<String> guarded = new TreeSet<>();
    Set<String> unguarded = new TreeSet<>();
    Set<String> refused = new TreeSet<>();
    Gate gate = server.gate();
    for (Method method : App.class.getMethods()) {
      if (Stream.of(method.getParameterTypes()).noneMatch(GuardedAppTest::isHandler)) {
        continue;
      }
      GuardedApp app = new GuardedApp(slack.config(), gate);
      Set<Object> before = registered(app);
      Object[] arguments = Stream.of(method.getParameterTypes()).map(GuardedAppTest::argument).toArray();
      try {
        method.invoke(app, arguments);
      } catch (InvocationTargetException e) {
        assertInstanceOf(UnsupportedOperationException.class, e.getCause(), method + ": " + e.getCause());
        refused.add(method.getName());
        continue;
      }
      Set<Object> handlers = registered(app);
      handlers.removeAll(before);
      assertFalse(handlers.isEmpty(), method + " registers nothing");
      for (Object handler : handlers) {
        (hasTurn(handler, payload(method.getName(), NAME)) ? guarded : unguarded).add(method.getName());
        Object other = payload(method.getName(), "another one");
        assertFalse(other != null && hasTurn(handler, other), method + " begins a turn although it does not match");
      }
    }
    assertEquals(Set.of("blockSuggestion", "dialogSuggestion", "endpoint"), unguarded);
    assertEquals(Set.of("event"), refused);
    assertTrue(guarded.containsAll(Set.of("event", "message", "function", "command", "blockAction")), "" + guarded);
  }

  private static boolean isHandler(Class<?> type) {
    return type.getName().startsWith("com.slack.api.bolt.handler.") || type == EventHandler.class;
  }

  /** What handlers are registered for; also a method of HTTP. */
  private static final String NAME = "GET";

  private static Object argument(Class<?> type) {
    if (type == Pattern.class) {
      return Pattern.compile(NAME);
    } else if (type == String.class) {
      return NAME;
    } else if (type == Class.class) {
      return MessageEvent.class;
    } else if (type == WebEndpoint.Method.class) {
      return WebEndpoint.Method.GET;
    } else if (type == EventHandler.class) {
      return new AppMentionHandler() {
        @Override
        public void handle(AppMentionPayload payload) {}
      };
    }
    assertTrue(isHandler(type), "a parameter of another kind: " + type);
    InvocationHandler call = (proxy, called, arguments) -> called.getName().equals("apply") ? Response.ok() : null;
    return Proxy.newProxyInstance(type.getClassLoader(), new Class<?>[] {type}, call);
  }

  /** The handlers that Bolt calls, whatever they are registered by. */
  private static Set<Object> registered(App app) throws Exception {
    Set<Object> handlers = Collections.newSetFromMap(new IdentityHashMap<>());
    for (Field field : App.class.getDeclaredFields()) {
      if (Map.class.isAssignableFrom(field.getType())) {
        field.setAccessible(true);
        for (Object value : ((Map<?, ?>) field.get(app)).values()) {
          if (value instanceof List) {
            handlers.addAll((List<?>) value);
          } else {
            handlers.add(value);
          }
        }
      }
    }
    return handlers;
  }

  /** Whether the turn begins before the author's handler. */
  private static boolean hasTurn(Object handler, Object payload) throws Exception {
    Method apply =
        Stream.of(handler.getClass().getInterfaces())
            .flatMap(type -> Stream.of(type.getMethods()))
            .filter(method -> method.getName().equals("apply") && method.getParameterCount() == 2)
            .findFirst()
            .orElseThrow();
    try {
      apply.invoke(handler, payload, null);
      return false;
    } catch (InvocationTargetException e) {
      assertTrue(e.getCause().toString().contains("it has no turn"), e.getCause().toString()); // outside of a request
      return true;
    }
  }

  /** Where Bolt looks at the payload itself: one with this name. */
  private static Object payload(String registration, String name) {
    switch (registration) {
      case "message":
        MessagePayload message = new MessagePayload();
        message.setEvent(new MessageEvent());
        message.getEvent().setText(name);
        return message;
      case "function":
        FunctionExecutedPayload function = new FunctionExecutedPayload();
        function.setEvent(new FunctionExecutedEvent());
        function.getEvent().setFunction(new FunctionExecutedEvent.Function());
        function.getEvent().getFunction().setCallbackId(name);
        return function;
      default:
        return null;
    }
  }

  @Test
  void withoutTheGuardThereIsNoTurn() throws Exception {
    App app = new App(slack.config());
    CompletableFuture<Turn> seen = new CompletableFuture<>();
    app.event(
        MessageEvent.class,
        (payload, context) -> {
          seen.complete(Turns.of(context));
          return context.ack();
        });
    accepted(post(app, message("Ev1", "hi")));
    assertNull(seen.getNow(null));
  }
}
