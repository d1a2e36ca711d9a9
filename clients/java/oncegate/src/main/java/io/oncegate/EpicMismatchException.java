package io.oncegate;

import org.jspecify.annotations.Nullable;

/** The session is bound to another epic. */
public final class EpicMismatchException extends OncegateException {
  private static final long serialVersionUID = 1;

  private final String bound;

  EpicMismatchException(String bound, @Nullable Throwable cause) {
    super("the session is bound to epic " + bound + "; use another session, or BindEpic", cause);
    this.bound = bound;
  }

  /** The epic that the session is bound to. */
  public String bound() {
    return bound;
  }
}
