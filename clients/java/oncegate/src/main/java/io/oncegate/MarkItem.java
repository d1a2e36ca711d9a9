package io.oncegate;

import org.jspecify.annotations.Nullable;

/** The answer for one delivery that was marked. */
public final class MarkItem {
  private final Delivery delivery;
  private final boolean first;
  private final String eventId;
  private final @Nullable OncegateException error;

  MarkItem(Delivery delivery, boolean first, String eventId, @Nullable OncegateException error) {
    this.delivery = delivery;
    this.first = first;
    this.eventId = eventId;
    this.error = error;
  }

  /** The delivery. */
  public Delivery delivery() {
    return delivery;
  }

  /** Whether this mark is the first: handle the event. */
  public boolean first() {
    return first;
  }

  /** The event's id as stored. */
  public String eventId() {
    return eventId;
  }

  /** Why this delivery alone could not be marked; null if it was. Only from {@link Gate#markAll}. */
  public @Nullable OncegateException error() {
    return error;
  }
}
