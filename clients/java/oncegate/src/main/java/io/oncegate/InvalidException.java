package io.oncegate;

import org.jspecify.annotations.Nullable;

/** The request breaks a rule of the contract; fix the caller. */
public final class InvalidException extends OncegateException {
  private static final long serialVersionUID = 1;

  private final @Nullable String field;

  InvalidException(String message, @Nullable String field, @Nullable Throwable cause) {
    super(message + "; fix the caller", cause);
    this.field = field;
  }

  /** The path of the field; null if the message has none. */
  public @Nullable String field() {
    return field;
  }
}
