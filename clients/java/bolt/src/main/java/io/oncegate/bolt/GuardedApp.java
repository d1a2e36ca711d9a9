package io.oncegate.bolt;

import com.slack.api.app_backend.events.EventHandler;
import com.slack.api.bolt.App;
import com.slack.api.bolt.AppConfig;
import com.slack.api.bolt.handler.BoltEventHandler;
import com.slack.api.bolt.handler.builtin.AttachmentActionHandler;
import com.slack.api.bolt.handler.builtin.BlockActionHandler;
import com.slack.api.bolt.handler.builtin.DialogCancellationHandler;
import com.slack.api.bolt.handler.builtin.DialogSubmissionHandler;
import com.slack.api.bolt.handler.builtin.GlobalShortcutHandler;
import com.slack.api.bolt.handler.builtin.MessageShortcutHandler;
import com.slack.api.bolt.handler.builtin.SlashCommandHandler;
import com.slack.api.bolt.handler.builtin.ViewClosedHandler;
import com.slack.api.bolt.handler.builtin.ViewSubmissionHandler;
import com.slack.api.bolt.handler.builtin.WorkflowStepEditHandler;
import com.slack.api.bolt.handler.builtin.WorkflowStepExecuteHandler;
import com.slack.api.bolt.handler.builtin.WorkflowStepSaveHandler;
import com.slack.api.bolt.middleware.Middleware;
import com.slack.api.bolt.middleware.builtin.Assistant;
import com.slack.api.bolt.middleware.builtin.WorkflowStep;
import com.slack.api.bolt.request.Request;
import com.slack.api.bolt.response.Response;
import com.slack.api.model.event.Event;
import com.slack.api.model.event.FunctionExecutedEvent;
import com.slack.api.model.event.MessageEvent;
import io.oncegate.Delivery;
import io.oncegate.DeniedException;
import io.oncegate.Gate;
import io.oncegate.InvalidException;
import io.oncegate.LostReason;
import io.oncegate.OncegateException;
import io.oncegate.RejectException;
import io.oncegate.Turn;
import io.oncegate.Unavailability;
import java.lang.System.Logger.Level;
import java.time.Duration;
import java.util.function.Supplier;
import java.util.regex.Pattern;

/**
 * An app of Bolt whose handlers run in the turns of their deliveries: each event is handled once, and those of a thread
 * one at a time, over all processes. It works over HTTP and Socket Mode.
 *
 * <pre>{@code
 * App app = new GuardedApp(config, gate);
 * app.event(AppMentionEvent.class, (payload, ctx) -> {
 *   Turn turn = Turns.of(ctx);
 *   …
 *   return ctx.ack();
 * });
 * }</pre>
 *
 * <p>The turn begins when the first handler matches. The answer to Slack:
 *
 * <ul>
 *   <li>granted: that of the handler, after it has returned. If it throws, or answers with a status other than 2xx, the
 *       turn fails. {@link RejectException} refuses the event for good, and is acknowledged.
 *   <li>handled before, or given up: acknowledged, without the handler.
 *   <li>another run handles the event: refused with status 503 while Slack will deliver it again, so that a crash of
 *       that run loses nothing. The last delivery is acknowledged, and this process asks again for it.
 *   <li>another run handles the interaction or command: acknowledged.
 *   <li>the thread is busy: acknowledged. The delivery waits in this process, which has the only copy then, for at most
 *       {@link GuardOptions#waitFor}. A crash of the process or an exception of its handler then loses it; the
 *       exception is logged.
 *   <li>{@link GuardOptions#maxBackgroundDeliveries} acknowledged deliveries run or wait, or the app drains: refused
 *       with status 503.
 *   <li>the server is unavailable: events are refused while Slack will deliver them again. For the rest, the gate's
 *       {@link Gate.Builder#onUnavailable} decides. If it is {@link Unavailability#RAISE}, the default, the last
 *       delivery of an event is acknowledged and waits in this process, and an interaction or command is refused.
 * </ul>
 *
 * <p>Bolt for Java acknowledges when the handler returns. If the process is killed before, or if the handler needs more
 * than 3 s, Slack delivers an event again; the guard refuses these deliveries until the handler has returned. A handler
 * of a command or an interaction that takes longer needs {@link GuardOptions#ackFirst}. A turn ends when its handler
 * returns: work that the handler hands to {@code app.executorService()} runs without a turn. Use {@code ackFirst}, and
 * do that work in the handler.
 *
 * <p>If a request is acknowledged first, Bolt calls its handlers in the background, without the middleware, which has
 * run before.
 *
 * <p>If the turn is lost, the handler's thread is interrupted. What the handler then returns is not stored, and Slack
 * delivers an event again, because the delivery is not acknowledged. For an acknowledged delivery and the last one of
 * an event, this process requests another turn, until one is granted or {@link GuardOptions#waitFor} ends; also if the
 * server does not answer the end of the turn. A loss by {@link LostReason#MAX_HOLD}, {@link LostReason#DENIED} or
 * {@link LostReason#CLOSED} loses such a delivery, which is logged.
 *
 * <p>A handler may end its turn itself by {@link Turn#succeed} or {@link Turn#reject}; one that ends it by {@link
 * Turn#fail} must not answer with 2xx. An {@link Error} of a handler fails the turn as well, and {@link #run} throws it
 * as the cause of an exception.
 *
 * <p>Not guarded are suggestions, which only ask, and what a middleware does itself. {@link Assistant}, {@link
 * WorkflowStep} and the handlers of {@link #event(EventHandler)} do their work where the guard cannot see its end, and
 * are not accepted.
 */
public class GuardedApp extends App {
  /** Whether the current thread registers a handler that Bolt itself puts around the author's. */
  private static final ThreadLocal<Boolean> INNER = ThreadLocal.withInitial(() -> false);

  private final Guard guard;

  /** An app with the settings of the environment. */
  public GuardedApp(Gate gate) {
    this(new AppConfig(), gate);
  }

  /** An app with these settings. */
  public GuardedApp(AppConfig config, Gate gate) {
    this(config, gate, new GuardOptions());
  }

  /** The same, with options of the guard. */
  public GuardedApp(AppConfig config, Gate gate, GuardOptions options) {
    super(config);
    guard = new Guard(gate, options);
  }

  /**
   * Refuses new deliveries from now on, and waits for those that run or wait in this process. False if some still do
   * after that time. At the end of the process, call it before the gate is drained: a delivery that waits for its turn
   * ends without it when the gate is closed.
   *
   * <p>A delivery that matches a handler is refused with status 503, or not acknowledged over Socket Mode, so that
   * Slack delivers an event to another process. Slack does not repeat a command, an interaction and the last retry of
   * an event: they are refused as well, which the user of a command or an interaction sees.
   */
  public boolean drain(Duration atMost) throws InterruptedException {
    return guard.drain(atMost);
  }

  /** Waits for the deliveries that run or wait in this process. For tests. */
  boolean join(Duration atMost) throws InterruptedException {
    return guard.join(atMost);
  }

  /**
   * Starts the app, as Bolt's own servers do, and connects the gate: a process that has just started may need longer
   * for that than the 3 s in which Slack expects its first answer. It takes up to 2.5 s if the server is unavailable.
   * That is logged, and so is a server that does not accept the gate's token or certificate.
   */
  @Override
  public App start() {
    super.start();
    if (!Dispatch.isRunning()) { // else a request has started the app, and waits for its answer
      connect();
    }
    return this;
  }

  /** Asks for the turn of no event. The server refuses it and stores nothing, and all that a turn needs is loaded. */
  private void connect() {
    try {
      guard
          .gate
          .turn(Delivery.of("", ""))
          .onUnavailable(Unavailability.RAISE)
          .patience(Dispatch.PATIENCE_BEFORE_ACK)
          .begin()
          .close();
    } catch (InvalidException e) {
      // The gate is connected.
    } catch (DeniedException e) {
      if (!e.reason().equals("TEAM_DENIED")) { // no principal has the empty team
        guard.log(Level.WARNING, "the server denies this app: " + e.reason() + "; its deliveries fail", e);
      }
    } catch (OncegateException e) {
      guard.log(
          Level.WARNING, "the gate is not connected; deliveries are refused until its server is available", e);
    }
  }

  @Override
  @SuppressWarnings("rawtypes")
  public Response run(Request request) throws Exception {
    return new Dispatch(guard, request, () -> runHandler(request)).answerBy(() -> super.run(request));
  }

  @Override
  @SuppressWarnings("deprecation")
  public App use(Middleware middleware) {
    if (middleware instanceof Assistant || middleware instanceof WorkflowStep) {
      throw unguarded(middleware.getClass().getSimpleName(), "handle its events by app.event and app.message");
    }
    return super.use(middleware);
  }

  @Override
  public App event(EventHandler<?> handler) {
    throw unguarded("event(EventHandler)", "use event(Class, BoltEventHandler)");
  }

  private static UnsupportedOperationException unguarded(String what, String instead) {
    return new UnsupportedOperationException(what + " works in a thread where it has no turn; " + instead);
  }

  /** All handlers of events come here. */
  @Override
  protected <E extends Event> App event(
      Class<E> eventClass, boolean allowMultipleEventHandlers, BoltEventHandler<E> handler) {
    return super.event(eventClass, allowMultipleEventHandlers, INNER.get() ? handler : guarded(handler));
  }

  private static <E extends Event> BoltEventHandler<E> guarded(BoltEventHandler<E> handler) {
    return (payload, context) -> Dispatch.current().handle(context, () -> handler.apply(payload, context));
  }

  /** Registers a handler that Bolt calls only if it matches, which is when its turn begins. */
  private App inner(Supplier<App> registration) {
    INNER.set(true);
    try {
      return registration.get();
    } finally {
      INNER.remove();
    }
  }

  @Override
  public App message(Pattern pattern, BoltEventHandler<MessageEvent> handler) {
    return inner(() -> super.message(pattern, guarded(handler)));
  }

  @Override
  public App function(String callbackId, BoltEventHandler<FunctionExecutedEvent> handler) {
    return inner(() -> super.function(callbackId, guarded(handler)));
  }

  @Override
  public App function(Pattern callbackId, BoltEventHandler<FunctionExecutedEvent> handler) {
    return inner(() -> super.function(callbackId, guarded(handler)));
  }

  @Override
  public App command(Pattern pattern, SlashCommandHandler handler) {
    return super.command(
        pattern, (request, context) -> Dispatch.current().handle(context, () -> handler.apply(request, context)));
  }

  @Override
  public App blockAction(Pattern pattern, BlockActionHandler handler) {
    return super.blockAction(
        pattern, (request, context) -> Dispatch.current().handle(context, () -> handler.apply(request, context)));
  }

  @Override
  public App globalShortcut(Pattern pattern, GlobalShortcutHandler handler) {
    return super.globalShortcut(
        pattern, (request, context) -> Dispatch.current().handle(context, () -> handler.apply(request, context)));
  }

  @Override
  public App messageShortcut(Pattern pattern, MessageShortcutHandler handler) {
    return super.messageShortcut(
        pattern, (request, context) -> Dispatch.current().handle(context, () -> handler.apply(request, context)));
  }

  @Override
  public App viewSubmission(Pattern pattern, ViewSubmissionHandler handler) {
    return super.viewSubmission(
        pattern, (request, context) -> Dispatch.current().handle(context, () -> handler.apply(request, context)));
  }

  @Override
  public App viewClosed(Pattern pattern, ViewClosedHandler handler) {
    return super.viewClosed(
        pattern, (request, context) -> Dispatch.current().handle(context, () -> handler.apply(request, context)));
  }

  @Override
  @Deprecated
  public App workflowStepEdit(Pattern pattern, WorkflowStepEditHandler handler) {
    return super.workflowStepEdit(
        pattern, (request, context) -> Dispatch.current().handle(context, () -> handler.apply(request, context)));
  }

  @Override
  @Deprecated
  public App workflowStepSave(Pattern pattern, WorkflowStepSaveHandler handler) {
    return super.workflowStepSave(
        pattern, (request, context) -> Dispatch.current().handle(context, () -> handler.apply(request, context)));
  }

  @Override
  @Deprecated
  public App workflowStepExecute(Pattern pattern, WorkflowStepExecuteHandler handler) {
    return super.workflowStepExecute(
        pattern, (request, context) -> Dispatch.current().handle(context, () -> handler.apply(request, context)));
  }

  @Override
  public App attachmentAction(Pattern pattern, AttachmentActionHandler handler) {
    return super.attachmentAction(
        pattern, (request, context) -> Dispatch.current().handle(context, () -> handler.apply(request, context)));
  }

  @Override
  public App dialogSubmission(Pattern pattern, DialogSubmissionHandler handler) {
    return super.dialogSubmission(
        pattern, (request, context) -> Dispatch.current().handle(context, () -> handler.apply(request, context)));
  }

  @Override
  public App dialogCancellation(Pattern pattern, DialogCancellationHandler handler) {
    return super.dialogCancellation(
        pattern, (request, context) -> Dispatch.current().handle(context, () -> handler.apply(request, context)));
  }
}
