package io.oncegate;

import org.jspecify.annotations.Nullable;

/** The event is on record with another digest. */
public final class PayloadMismatchException extends OncegateException {
  private static final long serialVersionUID = 1;

  PayloadMismatchException(@Nullable Throwable cause) {
    super("another payload has the same name; name the two events differently", cause);
  }
}
