package io.oncegate;

import org.jspecify.annotations.Nullable;

/** The server does not know the caller, or the caller may not do this. */
public final class DeniedException extends OncegateException {
  private static final long serialVersionUID = 1;

  private final String reason;

  DeniedException(String message, String reason, @Nullable Throwable cause) {
    super(message, cause);
    this.reason = reason;
  }

  /** TEAM_DENIED, ROLE_DENIED or another reason of the contract; else UNAUTHENTICATED or PERMISSION_DENIED. */
  public String reason() {
    return reason;
  }
}
