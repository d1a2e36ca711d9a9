package io.oncegate;

import org.jspecify.annotations.Nullable;

/** What the library throws. One that a status of gRPC caused has it as its cause. */
public abstract class OncegateException extends RuntimeException {
  private static final long serialVersionUID = 1;

  OncegateException(String message, @Nullable Throwable cause) {
    super(message, cause);
  }
}
