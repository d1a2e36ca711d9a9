package io.oncegate;

/** What happens to a turn while the server is unavailable, once the patience is over. */
public enum Unavailability {
  /** {@link UnavailableException}. The default: where the sender redelivers, a refusal costs only delay. */
  RAISE,
  /** The handler runs without a turn: its {@link Turn#held} is false. */
  RUN,
  /** {@link Outcome.Dropped}, or {@link DroppedException}: the event is not handled. */
  DROP
}
