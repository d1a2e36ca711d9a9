package io.oncegate.bolt;

import static io.oncegate.bolt.Guard.LOG;

import com.slack.api.bolt.context.Context;
import com.slack.api.bolt.request.Request;
import com.slack.api.bolt.response.Response;
import com.slack.api.methods.SlackApiException;
import io.oncegate.BusyException;
import io.oncegate.Delivery;
import io.oncegate.LostException;
import io.oncegate.OncegateException;
import io.oncegate.OutcomeUnknownException;
import io.oncegate.OverloadedException;
import io.oncegate.RejectException;
import io.oncegate.Turn;
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
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import org.jspecify.annotations.Nullable;

/**
 * One request on its way through the app.
 *
 * <p>The turn begins when the first handler matches, and ends when the answer to Slack is known: what Slack takes for
 * handled is handled, and what it delivers again has failed.
 */
final class Dispatch {
  /** Slack waits for 3 s. */
  private static final Duration PATIENCE_BEFORE_ACK = Duration.ofMillis(2500);

  private static final Duration PATIENCE_AFTER_ACK = Duration.ofSeconds(30);

  /** That the server accepts. */
  private static final Duration LONGEST_WAIT = Duration.ofMinutes(10);

  /** Slack delivers an event that is not acknowledged three more times. */
  private static final int LAST_RETRY = 3;

  private static final ThreadLocal<Dispatch> CURRENT = new ThreadLocal<>();

  private final Guard guard;
  private final Request<?> request;
  private @Nullable Turn turn;

  /** What the guard answers, whatever a middleware makes of it. */
  private @Nullable Answer answer;

  Dispatch(Guard guard, Request<?> request) {
    this.guard = guard;
    this.request = request;
  }

  /** A handler with its arguments. */
  @FunctionalInterface
  interface Work {
    Response run() throws IOException, SlackApiException;
  }

  /** Carries the guard's answer past the other handlers and the middleware. */
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
      Response response;
      try {
        response = app.call();
      } catch (Exception e) {
        if (answer != null) {
          return answer.response;
        }
        return afterException(e);
      }
      if (answer != null) {
        return answer.response;
      }
      return turn == null ? response : finish(turn, response) ? response : refusal(Duration.ofSeconds(1));
    } finally {
      if (turn != null) {
        turn.close(); // also after an error
      }
      guard.ended();
      if (outer == null) {
        CURRENT.remove();
      } else {
        CURRENT.set(outer);
      }
    }
  }

  private Response afterException(Exception problem) throws Exception {
    Turn begun = turn;
    if (begun == null) {
      throw problem;
    }
    if (problem instanceof RejectException) {
      return reject(begun, (RejectException) problem) ? Response.ok() : refusal(Duration.ofSeconds(1));
    }
    begun.fail(problem);
    throw problem; // which Bolt logs, and answers with status 500
  }

  /** Runs a handler that matches in the turn of the request, or not at all. */
  Response handle(Context context, Work handler) throws IOException, SlackApiException {
    if (turn != null) { // another handler of the same event
      Turns.put(context, turn);
      return handler.run();
    }
    Delivery delivery = guard.options.delivery.apply(request);
    boolean canRefuse = !delivery.isSentOnce() && retries() < LAST_RETRY;
    TurnRequest asked = guard.ask(delivery).waitFor(Duration.ZERO).patience(PATIENCE_BEFORE_ACK);
    if (canRefuse) {
      asked.onUnavailable(Unavailability.RAISE);
    }
    try {
      if (guard.acksFirst(request)) {
        beginElsewhere(asked, context, handler);
        throw answer(Response.ok());
      }
      turn = asked.begin();
    } catch (OncegateException refusal) {
      throw refused(refusal, delivery, canRefuse, context, handler);
    }
    Turns.put(context, turn);
    return handler.run();
  }

  private int retries() {
    String number = request.getHeaders().getFirstValue("X-Slack-Retry-Num");
    try {
      return number == null ? 0 : Integer.parseInt(number);
    } catch (NumberFormatException e) {
      return 0;
    }
  }

  /** Begins the turn and runs the handler in another thread, which a loss interrupts. Throws if there is no turn. */
  private void beginElsewhere(TurnRequest asked, Context context, Work handler) {
    CompletableFuture<@Nullable Void> begun = new CompletableFuture<>();
    boolean isStarted =
        guard.spawn(
            () -> {
              Turn granted;
              try {
                granted = asked.begin();
              } catch (RuntimeException | Error refusal) {
                begun.completeExceptionally(refusal);
                return;
              }
              begun.complete(null);
              runAcknowledged(granted, context, handler);
            });
    if (!isStarted) {
      throw answer(refusal(Duration.ofSeconds(1)));
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

  private RuntimeException refused(
      OncegateException refusal,
      Delivery delivery,
      boolean canRefuse,
      Context context,
      Work handler) {
    switch (Policy.after(refusal, delivery.isSentOnce(), canRefuse)) {
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
                  keepAsking(delivery, refusal, context, handler);
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
      LOG.log(Level.ERROR, "onBusy failed; the delivery waits for its turn all the same", e);
    }
  }

  /** Repeats the request for a turn until there is an answer, or the wait is over. */
  private void keepAsking(
      Delivery delivery, OncegateException refusal, Context context, Work handler) {
    long until = System.nanoTime() + guard.options.wait.toNanos();
    // The queue of a busy conversation is joined at once.
    Duration pause = refusal instanceof BusyException ? Duration.ZERO : Policy.retryAfter(refusal);
    while (true) {
      pause(pause);
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
          LOG.log(Level.ERROR, "a delivery that is not sent again was not handled", next);
          return;
        }
        continue;
      }
      runAcknowledged(granted, context, handler);
      return;
    }
  }

  private static Duration left(long until) {
    Duration left = Duration.ofNanos(Math.max(0, until - System.nanoTime()));
    return left.compareTo(LONGEST_WAIT) > 0 ? LONGEST_WAIT : left;
  }

  /** Ends early if the gate closes. */
  private void pause(Duration pause) {
    try {
      guard.gate.closing().get(pause.toNanos(), TimeUnit.NANOSECONDS);
    } catch (TimeoutException | ExecutionException e) {
      // It is over.
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt(); // which ends the next request
    }
  }

  /** Runs a handler whose request has been acknowledged. */
  private void runAcknowledged(Turn granted, Context context, Work handler) {
    try (granted) { // also after an error
      Turns.put(context, granted);
      try {
        Response response = handler.run();
        finish(granted, response);
        if (!isHandled(response)) {
          LOG.log(Level.ERROR, "a handler of Slack did not handle a delivery that Slack does not send again");
        }
      } catch (RejectException rejection) {
        reject(granted, rejection);
      } catch (Exception e) {
        granted.fail(e);
        LOG.log(Level.ERROR, "a handler of Slack failed in its turn, after the acknowledgement", e);
      }
    }
  }

  /** Ends the turn as the answer says. False: Slack has to deliver again, although the handler has succeeded. */
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

  private static boolean reject(Turn begun, RejectException rejection) {
    return end(begun, () -> begun.reject(rejection.detail()));
  }

  /** A handler may have ended its turn itself. */
  private static boolean end(Turn begun, Runnable end) {
    if (begun.attempt() > 0 && !begun.held() && begun.lostReason() == null) {
      return true;
    }
    try {
      end.run();
      return true;
    } catch (LostException e) {
      return false; // which the turn itself has logged
    } catch (OutcomeUnknownException e) {
      LOG.log(Level.WARNING, "the end of a turn of Slack has no answer", e);
      return false;
    }
  }
}
