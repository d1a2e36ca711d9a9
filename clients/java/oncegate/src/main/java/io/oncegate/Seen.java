package io.oncegate;

import io.oncegate.v1.IsProcessedResponse;
import java.lang.reflect.Type;
import org.jspecify.annotations.Nullable;

/** What the server knows of an event. */
public final class Seen {
  private final IsProcessedResponse response;
  private final Codec codec;

  Seen(IsProcessedResponse response, Codec codec) {
    this.response = response;
    this.codec = codec;
  }

  /** NOT_SEEN, IN_PROGRESS or PROCESSED. */
  public String state() {
    return response.getState().name().substring("EVENT_STATE_".length());
  }

  /** The event's id as stored. */
  public String eventId() {
    return response.getEvent().getEventId();
  }

  /** SUCCEEDED, REJECTED or GAVE_UP; null for a mark, and unless PROCESSED. */
  public @Nullable String outcome() {
    return Turn.outcomeName(response.getEvent().getOutcome());
  }

  /** Why it was rejected, or how its latest attempt failed. */
  public String detail() {
    return response.getEvent().getDetail();
  }

  /** The run that handles it; empty unless IN_PROGRESS. */
  public String holder() {
    return response.getEvent().getHolder();
  }

  /** The latest attempt. */
  public int attempt() {
    return response.getEvent().getAttempt();
  }

  /** What the run returned that handled the event; null if there is no result. */
  public <T> @Nullable T result(Class<T> type) {
    return stored().decode(type);
  }

  /** The same, for a type with arguments. */
  @SuppressWarnings("TypeParameterUnusedInFormals")
  public <T> @Nullable T result(Type type) {
    return stored().decode(type);
  }

  private Stored stored() {
    return new Stored(response.getResult(), response.getResultType(), codec);
  }
}
