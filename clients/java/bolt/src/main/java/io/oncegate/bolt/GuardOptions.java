package io.oncegate.bolt;

import com.slack.api.bolt.request.Request;
import com.slack.api.bolt.request.RequestType;
import io.oncegate.BusyException;
import io.oncegate.Delivery;
import io.oncegate.TurnRequest;
import java.time.Duration;
import java.util.Arrays;
import java.util.EnumSet;
import java.util.Set;
import java.util.function.Function;
import java.util.function.UnaryOperator;
import org.jspecify.annotations.Nullable;

/** The options of a {@link GuardedApp}. */
public final class GuardOptions {
  Duration wait = Duration.ofMinutes(10);
  int maxBackgroundDeliveries = 256;
  Set<RequestType> ackFirst = EnumSet.noneOf(RequestType.class);
  @Nullable BusyReport onBusy;
  UnaryOperator<TurnRequest> turns = UnaryOperator.identity();
  Function<Request<?>, Delivery> delivery = request -> Delivery.slack(request.getRequestBodyAsString());

  /** The options that are set unless they are changed. */
  public GuardOptions() {}

  /** What {@link #onBusy} calls. */
  @FunctionalInterface
  public interface BusyReport {
    /** Reports to the user that the conversation is busy. An exception is logged. */
    void report(Request<?> request, BusyException busy) throws Exception;
  }

  /**
   * Sets how long an acknowledged delivery waits for its turn. Default: 10 min. With 0, an event of a busy thread is
   * refused while Slack will deliver it again.
   */
  public GuardOptions waitFor(Duration wait) {
    if (wait.isNegative()) {
      throw new IllegalArgumentException("a wait of " + wait + " is negative");
    }
    this.wait = wait;
    return this;
  }

  /**
   * Sets how many acknowledged deliveries may run or wait in this process; each has a thread. Default: 256. Further
   * ones are refused with status 503. That loses a command, an interaction and the last retry of an event. One busy
   * thread of Slack can use up the number for all.
   */
  public GuardOptions maxBackgroundDeliveries(int number) {
    if (number < 1) {
      throw new IllegalArgumentException("maxBackgroundDeliveries is " + number + ", and must be at least 1");
    }
    maxBackgroundDeliveries = number;
    return this;
  }

  /**
   * Acknowledges such requests when their turn has begun, and not after their handler: for handlers of commands and
   * interactions that take longer than the 3 s of Slack, or of events that take longer than the 6 min in which Slack
   * delivers again. The handlers run in another thread, after the middleware, and their responses are not sent: they
   * answer by {@code ctx.respond}. A crash of the process or an exception of a handler loses the event. If the turn is
   * lost, another one is requested, until one is granted or {@link #waitFor} ends.
   *
   * @param types the types of request; none: all
   */
  public GuardOptions ackFirst(RequestType... types) {
    ackFirst = types.length == 0 ? EnumSet.allOf(RequestType.class) : EnumSet.copyOf(Arrays.asList(types));
    return this;
  }

  /**
   * Sets what is called if the conversation of a command or an interaction is busy, before it waits: for an ephemeral
   * message.
   */
  public GuardOptions onBusy(BusyReport report) {
    onBusy = report;
    return this;
  }

  /** Sets options of the turns. Their wait and patience are the guard's. */
  public GuardOptions turns(UnaryOperator<TurnRequest> options) {
    turns = options;
    return this;
  }

  /** Sets how a request names its event and conversation. Default: {@link Delivery#slack(String)} of its body. */
  public GuardOptions delivery(Function<Request<?>, Delivery> delivery) {
    this.delivery = delivery;
    return this;
  }
}
