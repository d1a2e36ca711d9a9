package io.oncegate.bolt;

import com.slack.api.bolt.context.Context;
import com.slack.api.bolt.request.Request;
import com.slack.api.bolt.response.Response;
import com.slack.api.methods.SlackApiException;
import io.oncegate.BusyException;
import io.oncegate.Delivery;
import io.oncegate.LostException;
import io.oncegate.LostReason;
import io.oncegate.OncegateException;
import io.oncegate.OutcomeUnknownException;
import io.oncegate.OverloadedException;
import io.oncegate.RejectException;
import io.oncegate.Turn;
import io.oncegate.TurnLostException;
import io.oncegate.TurnRequest;
import io.oncegate.Unavailability;
import java.io.IOException;
import java.lang.System.Logger.Level;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutionException;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.jspecify.annotations.Nullable;

/**
 * One request on its way through the app.
 *
 * <p>The turn begins when the first handler matches, and ends when the response to Slack is known: a turn succeeds if
 * Slack does not deliver the event again, and fails if it does.
 *
 * <p>If a request is acknowledged before its handlers run, they run in the background: a second dispatch, which has the
 * turn from the start, goes through Bolt's own loop over the handlers. The middleware has run before, and does not run
 * again: a signature is not accepted after 5 min.
 */
final class Dispatch {
  /** Slack waits for 3 s. */
  static final Duration PATIENCE_BEFORE_ACK = Duration.ofMillis(2500);

  private static final Duration PATIENCE_AFTER_ACK = Duration.ofSeconds(30);

  /** The longest wait that the server accepts. */
  private static final Duration LONGEST_WAIT = Duration.ofMinutes(10);

  /** Slack delivers an event that is not acknowledged three more times. */
  private static final int LAST_RETRY = 3;

  private static final Duration DEFAULT_RETRY_AFTER = Duration.ofSeconds(1);

  /** Not inside of a text, where quotation marks are escaped. */
  private static final Pattern EVENT_ID = Pattern.compile("\"event_id\"\\s*:\\s*\"([^\"]{1,64})\"");

  private static final ThreadLocal<Dispatch> CURRENT = new ThreadLocal<>();

  private final Guard guard;
  private final Request<?> request;

  /** Calls the handlers that match, in their order, until one of them has handled the request. */
  private final Callable<Response> handlers;

  private @Nullable Turn turn;

  /** What is to be requested again if the turn is lost: an event that Slack does not deliver again. */
  private @Nullable Delivery last;

  /** The server has refused the end of the turn, because it was lost before. */
  private @Nullable LostReason lostAtEnd;

  /** The server has not answered the end of the turn: it may have stored it. */
  private boolean isEndUnknown;

  /** The guard's own response. It overrides the response of any middleware. */
  private @Nullable Answer answer;

  Dispatch(Guard guard, Request<?> request, Callable<Response> handlers) {
    this.guard = guard;
    this.request = request;
    this.handlers = handlers;
  }

  /** A handler with its arguments. */
  @FunctionalInterface
  interface Work {
    Response run() throws IOException, SlackApiException;
  }

  /** Carries the guard's response past the other handlers and the middleware. */
  private static final class Answer extends RuntimeException {
    private static final long serialVersionUID = 1;
    final transient Response response;

    Answer(Response response) {
      super("the guard answers with status " + response.getStatusCode(), null, false, false);
      this.response = response;
    }
  }

  /** The request that the current thread handles. */
  static Dispatch current() {
    Dispatch current = CURRENT.get();
    if (current == null) {
      throw new IllegalStateException(
          "a middleware called the handler in another thread than that of its request, where it has no turn; call"
              + " chain.next in the thread of the request");
    }
    return current;
  }

  /** Whether the current thread handles a request. */
  static boolean isRunning() {
    return CURRENT.get() != null;
  }

  /** Lets the app answer the request, and ends the turn. */
  Response answerBy(Callable<Response> app) throws Exception {
    Dispatch outer = CURRENT.get();
    CURRENT.set(this);
    guard.begun();
    try {
      Response response = call(app);
      return requestsAgain(null) ? Response.ok() : response;
    } catch (Exception e) {
      if (requestsAgain(e)) {
        return Response.ok();
      }
      throw e;
    } finally {
      if (turn != null) {
        turn.close(); // if it could not be ended otherwise
      }
      guard.ended();
      if (outer == null) {
        CURRENT.remove();
      } else {
        CURRENT.set(outer);
      }
    }
  }

  private Response call(Callable<Response> app) throws Exception {
    Response response;
    try {
      response = app.call();
    } catch (Throwable e) {
      return answer == null ? afterFailure(e) : answer.response;
    }
    if (answer != null) {
      return answer.response;
    }
    return turn == null || finish(turn, response) ? response : refusal(DEFAULT_RETRY_AFTER);
  }

  private Response afterFailure(Throwable problem) throws Exception {
    Turn begun = turn;
    if (begun != null && problem instanceof RejectException) {
      return reject(begun, (RejectException) problem) ? Response.ok() : refusal(DEFAULT_RETRY_AFTER);
    }
    if (begun != null) {
      noteFailedEnd(begun, problem);
      begun.fail(problem);
    }
    // Bolt logs an exception, and answers with status 500. An error would end a thread of Socket Mode's client.
    throw problem instanceof Exception ? (Exception) problem : new ExecutionException("a handler failed", problem);
  }

  /** Remembers that a handler could not end its turn itself. */
  private void noteFailedEnd(Turn begun, Throwable problem) {
    if (begun.attempt() == 0 || begun.held()) {
      return; // it has not ended it, and may have failed to end another one
    }
    Throwable cause = problem;
    for (int depth = 0; cause != null && depth < 16; depth++) {
      if (cause instanceof TurnLostException) {
        noteLoss((TurnLostException) cause);
      } else if (cause instanceof OutcomeUnknownException) {
        isEndUnknown = true;
      }
      cause = cause.getCause();
    }
  }

  private void noteLoss(LostException lost) {
    if (lost.reason() != LostReason.ENDED) { // the handler has ended it
      lostAtEnd = lost.reason();
    }
  }

  private @Nullable LostReason loss(Turn begun) {
    LostReason reason = begun.lostReason();
    return reason == null ? lostAtEnd : reason;
  }

  /** Why the event may need a further run, and may get one; null: it does not. */
  private @Nullable String uncertainty(Turn begun) {
    LostReason loss = loss(begun);
    if (loss != null) {
      return Policy.isTemporary(loss) ? "turn lost (" + loss + ")" : null;
    }
    return isEndUnknown ? "end of the turn not answered" : null;
  }

  /** Whether another turn is requested for an event that Slack does not deliver again. */
  private boolean requestsAgain(@Nullable Exception problem) {
    Turn begun = turn;
    Delivery delivery = last;
    String reason = begun == null || delivery == null ? null : uncertainty(begun);
    if (reason == null || !guard.spawn(() -> retryUntilGranted(delivery, DEFAULT_RETRY_AFTER))) {
      return false;
    }
    reportNeed(reason, problem);
    return true;
  }

  private void reportNeed(String reason, @Nullable Throwable problem) {
    guard.log(Level.WARNING, reason + "; the delivery needs another turn: " + this, problem);
  }

  /** Runs a handler that matches in the turn of the request, or not at all. */
  Response handle(Context context, Work handler) throws IOException, SlackApiException {
    Turn granted = turn; // it is there if another handler of the same event has run, and in the background
    if (granted == null) {
      granted = begin();
      turn = granted;
    }
    Turns.put(context, granted);
    return handler.run();
  }

  /** Begins the turn. If this request does not get it, throws the guard's response. */
  private Turn begin() {
    if (guard.isDraining()) {
      throw answer(refusal(DEFAULT_RETRY_AFTER)); // another process may take it
    }
    Delivery delivery = guard.options.delivery.apply(request);
    boolean canRefuse = !delivery.isSentOnce() && retries() < LAST_RETRY;
    if (!canRefuse && !delivery.isSentOnce()) {
      last = delivery;
    }
    TurnRequest asked = guard.ask(delivery).waitFor(Duration.ZERO).patience(PATIENCE_BEFORE_ACK);
    if (canRefuse) {
      asked.onUnavailable(Unavailability.RAISE);
    }
    try {
      if (!guard.acksFirst(request)) {
        return asked.begin();
      }
      beginInBackground(asked, delivery);
      throw answer(Response.ok());
    } catch (OncegateException refusal) {
      throw refused(refusal, delivery, canRefuse);
    }
  }

  private int retries() {
    String number = request.getHeaders().getFirstValue("X-Slack-Retry-Num");
    try {
      return number == null ? 0 : Integer.parseInt(number);
    } catch (NumberFormatException e) {
      return 0;
    }
  }

  /**
   * Begins the turn and runs the handlers in another thread, which a loss interrupts. Returns when the turn has begun;
   * throws if there is no turn.
   */
  private void beginInBackground(TurnRequest asked, Delivery delivery) {
    CompletableFuture<@Nullable Void> begun = new CompletableFuture<>();
    boolean isStarted =
        guard.spawn(
            () -> {
              Turn granted;
              try {
                granted = asked.begin();
              } catch (Throwable refusal) {
                begun.completeExceptionally(refusal);
                return;
              }
              begun.complete(null);
              if (runAcknowledged(granted) != null) {
                retryUntilGranted(delivery, DEFAULT_RETRY_AFTER);
              }
            });
    if (!isStarted) {
      throw answer(refusal(DEFAULT_RETRY_AFTER));
    }
    try {
      begun.join();
    } catch (CompletionException e) {
      if (e.getCause() instanceof OncegateException) {
        throw (OncegateException) e.getCause();
      }
      throw e;
    }
  }

  private RuntimeException refused(OncegateException refusal, Delivery delivery, boolean canRefuse) {
    boolean canWait = !guard.options.wait.isZero();
    switch (Policy.after(refusal, delivery.isSentOnce(), canRefuse, canWait)) {
      case ACKNOWLEDGE:
        return answer(Response.ok());
      case REFUSE:
        return answer(refusal(Policy.retryAfter(refusal)));
      case QUEUE:
        boolean waits =
            guard.spawn(
                () -> {
                  if (refusal instanceof BusyException && delivery.isSentOnce()) {
                    reportBusy((BusyException) refusal);
                  }
                  // The queue of a busy conversation is joined at once.
                  boolean isBusy = refusal instanceof BusyException;
                  retryUntilGranted(delivery, isBusy ? Duration.ZERO : Policy.retryAfter(refusal));
                });
        return answer(waits ? Response.ok() : refusal(Policy.retryAfter(refusal)));
      default:
        return refusal;
    }
  }

  private Answer answer(Response response) {
    Answer made = new Answer(response);
    answer = made;
    return made;
  }

  /** Slack delivers an event again. In Socket Mode, a response other than 200 is not sent. */
  private static Response refusal(Duration after) {
    long seconds = Math.max(1, after.plusMillis(999).toSeconds());
    return Response.builder()
        .statusCode(503)
        .headers(Map.of("Retry-After", List.of(String.valueOf(seconds))))
        .build();
  }

  private void reportBusy(BusyException busy) {
    GuardOptions.BusyReport report = guard.options.onBusy;
    if (report == null) {
      return;
    }
    try {
      report.report(request, busy);
    } catch (Exception e) {
      guard.log(Level.ERROR, "onBusy failed; the delivery waits for its turn nevertheless: " + this, e);
    }
  }

  /** Repeats the request for a turn until one is granted that is not lost, or the wait is over. */
  private void retryUntilGranted(Delivery delivery, Duration firstPause) {
    long until = System.nanoTime() + Guard.nanos(guard.options.wait);
    Duration pause = firstPause;
    while (true) {
      guard.pause(pause);
      Turn granted;
      try {
        granted = guard.ask(delivery).waitFor(left(until)).patience(PATIENCE_AFTER_ACK).begin();
      } catch (OncegateException next) {
        if (Policy.isFinal(next)) {
          return;
        }
        Duration left = left(until);
        pause = Policy.retryAfter(next);
        if (!(next instanceof OverloadedException) && pause.compareTo(left) > 0) {
          pause = left; // the last request is at the end of the wait
        }
        if (!Policy.isTemporary(next) || left.isZero() || pause.compareTo(left) > 0) {
          dropped("turn not granted", next);
          return;
        }
        continue;
      }
      String again = runAcknowledged(granted);
      if (again == null) {
        return;
      }
      Duration left = left(until);
      if (left.isZero()) {
        dropped(again, null);
        return;
      }
      pause = left.compareTo(DEFAULT_RETRY_AFTER) < 0 ? left : DEFAULT_RETRY_AFTER;
    }
  }

  private static Duration left(long until) {
    Duration left = Duration.ofNanos(Math.max(0, until - System.nanoTime()));
    return left.compareTo(LONGEST_WAIT) > 0 ? LONGEST_WAIT : left;
  }

  /** Runs the handlers of a request that has been acknowledged. Returns why it needs another turn, or null. */
  private @Nullable String runAcknowledged(Turn granted) {
    Dispatch background = new Dispatch(guard, request, handlers);
    background.turn = granted;
    Response response = null;
    Exception problem = null;
    try {
      response = background.answerBy(handlers);
    } catch (Exception e) {
      problem = e;
    }
    String again = background.uncertainty(granted);
    if (again != null) {
      reportNeed(again, problem);
      return again;
    }
    LostReason loss = background.loss(granted);
    if (loss != null) {
      dropped("turn lost (" + loss + ")", problem);
    } else if (problem != null) {
      dropped("handler failed", problem);
    } else if (!isHandled(response)) {
      dropped("no handler returned a status of 2xx", null);
    }
    return null;
  }

  /** Logs that Slack does not deliver the event again, although it was not handled. */
  private void dropped(String reason, @Nullable Throwable problem) {
    guard.log(Level.ERROR, "acknowledged delivery dropped: " + reason + ": " + this, problem);
  }

  /** Ends the turn as the response says. False: Slack has to deliver again, although the handler has succeeded. */
  private boolean finish(Turn begun, @Nullable Response response) {
    if (!isHandled(response)) {
      begun.fail("the handler answered with status " + (response == null ? null : response.getStatusCode()));
      return true;
    }
    return end(begun, () -> begun.succeed(null));
  }

  private static boolean isHandled(@Nullable Response response) {
    Integer status = response == null ? null : response.getStatusCode();
    return status != null && status >= 200 && status <= 299;
  }

  private boolean reject(Turn begun, RejectException rejection) {
    return end(begun, () -> begun.reject(rejection.detail()));
  }

  /** A handler may have ended its turn itself. */
  private boolean end(Turn begun, Runnable end) {
    if (begun.attempt() > 0 && !begun.held() && begun.lostReason() == null) {
      return true;
    }
    try {
      end.run();
      return true;
    } catch (LostException e) {
      noteLoss(e);
      return false; // which the turn itself has logged
    } catch (OutcomeUnknownException e) {
      isEndUnknown = true;
      guard.log(Level.WARNING, "the end of a turn has no answer: " + this, e);
      return false;
    }
  }

  /** The type of the request, and the id of an event, for the log. */
  @Override
  public String toString() {
    String body = request.getRequestBodyAsString();
    Matcher event = EVENT_ID.matcher(body == null ? "" : body);
    return request.getRequestType() + (event.find() ? " " + event.group(1) : "");
  }
}
