package io.oncegate;

/** All attempts failed, and no run has handled the event; acknowledge it, and alert a person. */
public final class GaveUpException extends NotGrantedException {
  private static final long serialVersionUID = 1;

  private final int attempts;
  private final String detail;

  GaveUpException(int attempts, String detail) {
    super(
        "the event was given up after " + attempts + " attempts: " + (detail.isEmpty() ? "no detail" : detail), null);
    this.attempts = attempts;
    this.detail = detail;
  }

  /** How many attempts there were. */
  public int attempts() {
    return attempts;
  }

  /** How the latest attempt failed. */
  public String detail() {
    return detail;
  }
}
