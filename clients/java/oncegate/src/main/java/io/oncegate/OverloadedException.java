package io.oncegate;

import java.time.Duration;
import org.jspecify.annotations.Nullable;

/** A limit of the server was reached, and the patience is over. */
public final class OverloadedException extends OncegateException {
  private static final long serialVersionUID = 1;

  private final Duration retryAfter;

  OverloadedException(String message, Duration retryAfter, @Nullable Throwable cause) {
    super(message, cause);
    this.retryAfter = retryAfter;
  }

  /** When to try again. */
  public Duration retryAfter() {
    return retryAfter;
  }
}
