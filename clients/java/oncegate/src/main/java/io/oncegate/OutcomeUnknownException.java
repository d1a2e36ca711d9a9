package io.oncegate;

import org.jspecify.annotations.Nullable;

/** The end of a turn was sent, and no answer came. {@link Gate#seen} reports later. */
public final class OutcomeUnknownException extends OncegateException {
  private static final long serialVersionUID = 1;

  private final String turnId;
  private final transient @Nullable Object value;

  OutcomeUnknownException(String turnId, @Nullable Object value, @Nullable Throwable cause) {
    super(
        "the server did not confirm the end of the turn; refuse the delivery, so that its redelivery finds out",
        cause);
    this.turnId = turnId;
    this.value = value;
  }

  /** The turn. */
  public String turnId() {
    return turnId;
  }

  /** What the handler returned. */
  public @Nullable Object value() {
    return value;
  }
}
