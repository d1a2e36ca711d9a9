package io.oncegate;

import java.lang.reflect.Type;
import org.jspecify.annotations.Nullable;

/** The event has been handled; acknowledge it. */
public final class DuplicateException extends NotGrantedException {
  private static final long serialVersionUID = 1;

  private final @Nullable String outcome;
  private final String detail;
  private final transient Stored stored;

  DuplicateException(@Nullable String outcome, String detail, Stored stored) {
    super("the event has been handled; acknowledge it", null);
    this.outcome = outcome;
    this.detail = detail;
    this.stored = stored;
  }

  /** SUCCEEDED or REJECTED; null if the event was only marked. */
  public @Nullable String outcome() {
    return outcome;
  }

  /** Why the event was rejected. */
  public String detail() {
    return detail;
  }

  /** What the run returned that handled the event; null if nothing was stored. */
  public <T> @Nullable T result(Class<T> type) {
    return stored.decode(type);
  }

  /** The same, for a type with arguments. */
  @SuppressWarnings("TypeParameterUnusedInFormals")
  public <T> @Nullable T result(Type type) {
    return stored.decode(type);
  }

  Stored stored() {
    return stored;
  }
}
