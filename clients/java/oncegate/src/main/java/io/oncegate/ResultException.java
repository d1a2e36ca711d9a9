package io.oncegate;

import org.jspecify.annotations.Nullable;

/** A stored result cannot be read as the type that was asked for. */
public final class ResultException extends OncegateException {
  private static final long serialVersionUID = 1;

  ResultException(String message, @Nullable Throwable cause) {
    super(message, cause);
  }
}
