package io.oncegate;

import org.jspecify.annotations.Nullable;

/** A lease ended without its holder. */
public final class LeaseLostException extends LostException {
  private static final long serialVersionUID = 1;

  LeaseLostException(LostReason reason, @Nullable Throwable cause) {
    super("lease", reason, cause);
  }
}
