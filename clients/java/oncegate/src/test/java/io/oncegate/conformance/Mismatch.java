package io.oncegate.conformance;

/** A result differs from what its step expects. */
final class Mismatch extends Exception {
  private static final long serialVersionUID = 1;

  Mismatch(String text) {
    super("Mismatch: " + text);
  }
}
