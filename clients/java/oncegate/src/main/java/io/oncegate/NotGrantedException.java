package io.oncegate;

import org.jspecify.annotations.Nullable;

/** There is no turn. Scopes throw it; {@link TurnRequest#run} returns an {@link Outcome} instead. */
public abstract class NotGrantedException extends OncegateException {
  private static final long serialVersionUID = 1;

  NotGrantedException(String message, @Nullable Throwable cause) {
    super(message, cause);
  }
}
