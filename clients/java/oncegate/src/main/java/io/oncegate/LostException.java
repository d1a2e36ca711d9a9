package io.oncegate;

import org.jspecify.annotations.Nullable;

/** A turn or lease ended without its holder. Stop working: another run may have it. */
public abstract class LostException extends OncegateException {
  private static final long serialVersionUID = 1;

  private final LostReason reason;

  LostException(String what, LostReason reason, @Nullable Throwable cause) {
    super(
        reason == LostReason.ENDED
            ? "the " + what + " has ended; do not use it any more"
            : "the " + what + " was lost (" + reason + "); stop working, another run may have it",
        cause);
    this.reason = reason;
  }

  /** Why it was lost. */
  public LostReason reason() {
    return reason;
  }
}
