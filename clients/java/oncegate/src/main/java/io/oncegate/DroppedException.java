package io.oncegate;

/** The server is unavailable, and {@link Unavailability#DROP} is set. */
public final class DroppedException extends NotGrantedException {
  private static final long serialVersionUID = 1;

  DroppedException(Throwable cause) {
    super("the server is unavailable, and the event is dropped, as its author chose", cause);
  }
}
