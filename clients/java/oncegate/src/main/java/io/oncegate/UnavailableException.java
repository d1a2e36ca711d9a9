package io.oncegate;

import java.time.Duration;
import org.jspecify.annotations.Nullable;

/** No server answered within the patience. Nothing is held, as far as is known. */
public class UnavailableException extends OncegateException {
  private static final long serialVersionUID = 1;

  private final Duration retryAfter;

  UnavailableException(String message, Duration retryAfter, @Nullable Throwable cause) {
    super(message, cause);
    this.retryAfter = retryAfter;
  }

  /** When to try again. */
  public Duration retryAfter() {
    return retryAfter;
  }
}
