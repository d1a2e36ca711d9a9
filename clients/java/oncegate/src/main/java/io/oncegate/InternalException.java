package io.oncegate;

import org.jspecify.annotations.Nullable;

/** A fault of the server, or an answer that this library does not know; report it. */
public final class InternalException extends OncegateException {
  private static final long serialVersionUID = 1;

  InternalException(String message, @Nullable Throwable cause) {
    super(message + "; report it", cause);
  }
}
