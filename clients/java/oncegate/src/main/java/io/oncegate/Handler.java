package io.oncegate;

import org.jspecify.annotations.Nullable;

/**
 * What runs in a turn.
 *
 * @param <T> the result, which duplicates get
 * @param <E> the checked exception that it may throw
 */
@FunctionalInterface
public interface Handler<T extends @Nullable Object, E extends Exception> {
  /** Handles the event. {@link RejectException} ends it for good; any other exception fails the turn. */
  T handle(Turn turn) throws E;
}
