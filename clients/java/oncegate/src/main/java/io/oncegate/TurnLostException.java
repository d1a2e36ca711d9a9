package io.oncegate;

import org.jspecify.annotations.Nullable;

/** A turn ended without its holder. */
public final class TurnLostException extends LostException {
  private static final long serialVersionUID = 1;

  private final transient @Nullable Object value;

  TurnLostException(LostReason reason, @Nullable Object value, @Nullable Throwable cause) {
    super("turn", reason, cause);
    this.value = value;
  }

  /** What the handler returned all the same. It was not stored. */
  public @Nullable Object value() {
    return value;
  }
}
