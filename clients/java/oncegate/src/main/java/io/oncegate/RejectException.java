package io.oncegate;

/** Thrown by a handler: no retry can succeed. The event ends REJECTED, with this detail. */
public final class RejectException extends RuntimeException {
  private static final long serialVersionUID = 1;

  /** Rejects the event, for this reason. */
  public RejectException(String detail) {
    super(detail);
  }

  /** The reason. */
  public String detail() {
    return String.valueOf(getMessage());
  }
}
