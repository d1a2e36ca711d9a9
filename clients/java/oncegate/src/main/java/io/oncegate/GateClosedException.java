package io.oncegate;

import java.time.Duration;

/** The gate is closed, or drains. Asking again does not help. */
public final class GateClosedException extends UnavailableException {
  private static final long serialVersionUID = 1;

  GateClosedException() {
    super("the gate is closed", Duration.ofSeconds(1), null);
  }
}
