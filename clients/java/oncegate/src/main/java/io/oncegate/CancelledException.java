package io.oncegate;

/** The thread was interrupted while it waited. Its interrupt status is set. */
public final class CancelledException extends OncegateException {
  private static final long serialVersionUID = 1;

  CancelledException(InterruptedException cause) {
    super("the thread was interrupted while it waited for the server", cause);
  }
}
