package io.oncegate.bolt;

import static io.oncegate.bolt.Bot.join;
import static io.oncegate.bolt.FakeSlack.click;
import static io.oncegate.bolt.FakeSlack.command;
import static io.oncegate.bolt.FakeSlack.mention;
import static io.oncegate.bolt.FakeSlack.message;
import static io.oncegate.bolt.FakeSlack.over;
import static io.oncegate.bolt.FakeSlack.post;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.slack.api.app_backend.events.handler.AppMentionHandler;
import com.slack.api.app_backend.events.payload.AppMentionPayload;
import com.slack.api.bolt.App;
import com.slack.api.bolt.handler.Handler;
import com.slack.api.bolt.middleware.builtin.Assistant;
import com.slack.api.bolt.request.RequestType;
import com.slack.api.bolt.response.Response;
import com.slack.api.model.event.AppMentionEvent;
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
import java.lang.reflect.Method;
import java.time.Duration;
import java.util.Arrays;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.regex.Pattern;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.extension.RegisterExtension;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** An app of Bolt against the real server. */
@Timeout(value = 120, threadMode = Timeout.ThreadMode.SEPARATE_THREAD)
final class GuardedAppTest {
  @RegisterExtension final OncegateServer server = OncegateServer.durable();
  private final Bot bot = new Bot();
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
    return Gate.builder().server(server.address()).ttl(Duration.ofSeconds(2)).build();
  }

  private GuardedApp app() {
    return app(server.gate(), new GuardOptions());
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
    assertThrows(StackOverflowError.class, () -> post(app, mention("Ev1")));
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
    GuardedApp app = app(server.gate(), new GuardOptions().waitFor(Duration.ofMillis(100)));
    try (Turn other = server.gate().turn(Delivery.slack(mention("Ev1"))).begin()) {
      assertTrue(other.held());
      accepted(post(app, mention("Ev2")));
      join(app);
    }
    bot.ran(0);
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void theLastRetryWaitsForTheRunBeforeIt(boolean fails) throws Exception {
    GuardedApp app = app();
    String event = mention("Ev1");
    CompletableFuture<Response> first = slack.begin(app, event);
    bot.entered();
    refused(post(app, event, 1));
    refused(post(app, event, 2));
    accepted(post(app, event, 3));
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

  private static Turn turnOf(com.slack.api.bolt.context.Context context) {
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
    assertEquals("NOT_SEEN", state(gate, message("Ev1", "hello")));
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

  @Test
  void aCommandIsAnsweredByItsHandler() throws Exception {
    GuardedApp app = app();
    CompletableFuture<Response> first = slack.begin(app, command("1"));
    bot.entered();
    accepted(post(app, command("1"))); // another run has it
    bot.leave(context -> Response.ok("done"));
    assertEquals("done", first.get().getBody());
    assertNull(post(app, command("1")).getBody());
    bot.ran(1);
  }

  @Test
  void aBusyInteractionIsReported() throws Exception {
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
    accepted(post(app, click("1")));
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
    accepted(post(app, command("1"))); // another run has it
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

  @Test
  void acknowledgedFirstAndRefused() throws Exception {
    try (Gate gate = hasty()) {
      GuardedApp app = app(gate, new GuardOptions().ackFirst());
      accepted(post(app, mention("Ev1")));
      Turn turn = bot.entered();
      refused(post(app, mention("Ev1"), 1));
      server.lose(Session.thread("T1", "C1", "17.5"));
      assertEquals(LostReason.LEASE_LOST, turn.lost().get());
      join(app); // its thread is interrupted
      bot.leave();
      accepted(post(app, mention("Ev1"), 3));
      join(app);
      bot.ran(2);
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
    Set<String> unguarded = new TreeSet<>();
    for (Method method : App.class.getDeclaredMethods()) {
      Class<?>[] types = method.getParameterTypes();
      boolean isByPattern = types.length == 2 && types[0] == Pattern.class;
      boolean takesHandler = Arrays.stream(types).anyMatch(Handler.class::isAssignableFrom);
      if (takesHandler && isByPattern && !method.isSynthetic()) {
        if (!overrides(method)) {
          unguarded.add(method.getName());
        }
      }
    }
    assertEquals(Set.of("blockSuggestion", "dialogSuggestion"), unguarded);
  }

  private static boolean overrides(Method method) {
    try {
      GuardedApp.class.getDeclaredMethod(method.getName(), method.getParameterTypes());
      return true;
    } catch (NoSuchMethodException e) {
      return false;
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
