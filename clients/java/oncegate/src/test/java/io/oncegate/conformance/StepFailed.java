package io.oncegate.conformance;

/** A step of a scenario has failed. */
final class StepFailed extends Exception {
  private static final long serialVersionUID = 1;

  StepFailed(String text, Throwable cause) {
    super(text, cause);
  }
}
