package io.oncegate;

import java.time.Duration;

/** Another turn has the conversation, and the wait is over. The event is unchanged. */
public final class BusyException extends NotGrantedException {
  private static final long serialVersionUID = 1;

  private final String holder;
  private final int queueLength;
  private final Duration retryAfter;

  BusyException(String holder, int queueLength, Duration retryAfter) {
    super(
        (holder.isEmpty() ? "the next in the queue" : holder)
            + " has the conversation, "
            + queueLength
            + " waiting; ask again in "
            + retryAfter.toMillis()
            + " ms",
        null);
    this.holder = holder;
    this.queueLength = queueLength;
    this.retryAfter = retryAfter;
  }

  /** Who has the conversation. */
  public String holder() {
    return holder;
  }

  /** How many callers wait for it. */
  public int queueLength() {
    return queueLength;
  }

  /** When to ask again. */
  public Duration retryAfter() {
    return retryAfter;
  }
}
