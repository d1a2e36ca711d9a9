package io.oncegate;

import java.time.Duration;

/** Another run handles the event; refuse the delivery if its sender redelivers. */
public final class InProgressException extends NotGrantedException {
  private static final long serialVersionUID = 1;

  private final String holder;
  private final int attempt;
  private final Duration retryAfter;

  InProgressException(String holder, int attempt, Duration retryAfter) {
    super(holder + " handles the event; ask again in " + retryAfter.toMillis() + " ms", null);
    this.holder = holder;
    this.attempt = attempt;
    this.retryAfter = retryAfter;
  }

  /** Who handles the event. */
  public String holder() {
    return holder;
  }

  /** The attempt of the run that handles it. */
  public int attempt() {
    return attempt;
  }

  /** When to ask again. */
  public Duration retryAfter() {
    return retryAfter;
  }
}
