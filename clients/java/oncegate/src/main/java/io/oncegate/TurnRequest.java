package io.oncegate;

import java.io.InterruptedIOException;
import java.lang.reflect.Type;
import java.net.SocketTimeoutException;
import java.nio.channels.ClosedByInterruptException;
import java.time.Duration;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/** A turn that is asked for, and its options. One request is used once. */
public final class TurnRequest {
  private final Gate gate;
  private final Delivery delivery;
  private final Config config;

  TurnRequest(Gate gate, Delivery delivery) {
    this.gate = gate;
    this.delivery = delivery;
    config = gate.config.copy();
  }

  /** Sets how long to queue while the conversation is busy. 0 to 10 min; default 0. */
  public TurnRequest waitFor(Duration wait) {
    config.wait = wait;
    return this;
  }

  /** Sets how long the turn runs unless it is renewed; see {@link Gate.Builder#ttl}. */
  public TurnRequest ttl(Duration ttl) {
    config.ttl = ttl;
    return this;
  }

  /** Sets how long to try while the server is unavailable or overloaded. */
  public TurnRequest patience(Duration patience) {
    config.patience = patience;
    return this;
  }

  /** Sets what happens after the patience. */
  public TurnRequest onUnavailable(Unavailability then) {
    config.onUnavailable = then;
    return this;
  }

  /** Sets after how many failed attempts the event is given up. 1 to 100. */
  public TurnRequest maxAttempts(int attempts) {
    config.maxAttempts = attempts;
    return this;
  }

  /** Sets how the result is stored. */
  public TurnRequest codec(Codec codec) {
    config.codec = codec;
    return this;
  }

  /** Binds the session to the work that it is for, such as an issue key. */
  public TurnRequest epic(String id) {
    config.epic = id;
    return this;
  }

  /** Sets labels that are shown with the lease. At most 8. */
  public TurnRequest labels(Map<String, String> labels) {
    config.labels = Map.copyOf(labels);
    return this;
  }

  /** Sets whether a loss interrupts the thread; see {@link Gate.Builder#interruptOnLoss}. */
  public TurnRequest interruptOnLoss(boolean interrupts) {
    config.interrupts = interrupts;
    return this;
  }

  /**
   * Begins the turn, for try-with-resources: it fails unless it is ended otherwise.
   *
   * <p>Throws {@link NotGrantedException} if there is no turn; {@link UnavailableException}, {@link
   * OverloadedException}, {@link DeniedException}, {@link EpicMismatchException}, {@link PayloadMismatchException} or
   * {@link InvalidException}; or {@link CancelledException} if the thread is interrupted, which also ends the wait.
   */
  public Turn begin() {
    config.check();
    Turn turn = new Turn(gate, config.copy(), delivery); // what is set later is for another turn
    try {
      gate.start(turn, turn::begin);
    } catch (Failure failed) {
      if (failed.reason.equals("NO_KEY")) {
        gate.warnUnguarded(delivery);
        return turn;
      }
      return unguarded(turn, failed.published());
    }
    config.hooks.onBegin(delivery);
    return turn;
  }

  /** The turn of a handler that runs without one, if its author chose so. */
  private Turn unguarded(Turn turn, OncegateException problem) {
    if (problem instanceof UnavailableException) {
      switch (config.onUnavailable) {
        case RUN:
          config.log.log(System.Logger.Level.WARNING, "the handler runs without a turn: " + problem.getMessage());
          return turn;
        case DROP:
          throw new DroppedException(problem);
        default:
          break;
      }
    }
    throw problem;
  }

  /**
   * Runs a handler in the turn. What it returns is stored, and duplicates get it.
   *
   * <p>If the turn is lost, the thread is interrupted; if the handler ends by that, {@link TurnLostException} is thrown.
   * If it throws {@link RejectException}, the event is never delivered again, and the outcome is {@link Outcome.Ran};
   * another exception fails the turn, and comes out as it is. The other exceptions are those of {@link #begin} and {@link
   * Turn#succeed}.
   */
  public <T extends @Nullable Object, E extends Exception> Outcome<T> run(
      Class<T> type, Handler<? extends T, E> handler) throws E {
    return run((Type) type, handler);
  }

  /** The same, for a type with arguments. */
  public <T extends @Nullable Object, E extends Exception> Outcome<T> run(
      Type type, Handler<? extends T, E> handler) throws E {
    Turn turn;
    try {
      turn = begin();
    } catch (NotGrantedException refusal) {
      return Outcome.of(refusal, type);
    }
    return runIn(turn, handler);
  }

  /**
   * Runs a handler once for the event, and returns its stored result to duplicates. The conversation is ignored. Throws
   * {@link NotGrantedException} while another run has the event.
   */
  public <T extends @Nullable Object, E extends Exception> @Nullable T once(
      Class<T> type, Handler<? extends T, E> handler) throws E {
    return once((Type) type, handler);
  }

  /** The same, for a type with arguments. */
  public <T extends @Nullable Object, E extends Exception> @Nullable T once(
      Type type, Handler<? extends T, E> handler) throws E {
    Turn turn;
    try {
      turn = new TurnRequest(this).begin();
    } catch (DuplicateException duplicate) {
      return duplicate.stored().decode(type);
    }
    Outcome.Ran<T> ran = runIn(turn, handler);
    return ran.value();
  }

  /** The event alone. */
  private TurnRequest(TurnRequest other) {
    gate = other.gate;
    delivery = other.delivery.withoutSession();
    config = other.config;
  }

  private static <T extends @Nullable Object, E extends Exception> Outcome.Ran<T> runIn(
      Turn turn, Handler<? extends T, E> handler) throws E {
    try (turn) { // also if the handler throws an error
      T value;
      try {
        value = handler.handle(turn);
      } catch (RejectException rejection) {
        turn.reject(rejection.detail());
        return new Outcome.Ran<>(null, rejection.detail());
      } catch (Throwable problem) {
        LostReason reason = turn.lostReason();
        try {
          turn.fail(problem);
        } catch (RuntimeException | Error e) {
          problem.addSuppressed(e);
        }
        if (reason != null && isInterruption(problem)) {
          TurnLostException lost = turn.lostBy(reason, null);
          lost.addSuppressed(problem);
          throw lost;
        }
        throw problem;
      }
      turn.succeed(value);
      return new Outcome.Ran<>(value, null);
    }
  }

  /** Whether an exception reports an interruption or a loss. */
  private static boolean isInterruption(Throwable problem) {
    Throwable cause = problem;
    for (int depth = 0; cause != null && depth < 16; depth++) {
      if (cause instanceof InterruptedException
          || cause instanceof ClosedByInterruptException
          || (cause instanceof InterruptedIOException && !(cause instanceof SocketTimeoutException))
          || cause instanceof LostException
          || cause instanceof CancelledException) {
        return true;
      }
      cause = cause.getCause();
    }
    return false;
  }
}
