package io.oncegate;

import java.lang.reflect.Type;
import java.time.Duration;
import java.util.function.Function;
import org.jspecify.annotations.Nullable;

/**
 * What came of a delivery: one of the nested classes. {@link #match} has a function for each.
 *
 * @param <T> what the handler returns
 */
public abstract class Outcome<T extends @Nullable Object> {
  private Outcome() {}

  /** Calls the function for this outcome. */
  public abstract <R extends @Nullable Object> R match(
      Function<? super Ran<T>, ? extends R> ran,
      Function<? super Duplicate<T>, ? extends R> duplicate,
      Function<? super GaveUp<T>, ? extends R> gaveUp,
      Function<? super InProgress<T>, ? extends R> inProgress,
      Function<? super Busy<T>, ? extends R> busy,
      Function<? super Dropped<T>, ? extends R> dropped);

  /** What a run that is refused comes to. */
  static <T extends @Nullable Object> Outcome<T> of(NotGrantedException refusal, Type type) {
    if (refusal instanceof DuplicateException) {
      return new Duplicate<>((DuplicateException) refusal, type);
    } else if (refusal instanceof GaveUpException) {
      return new GaveUp<>((GaveUpException) refusal);
    } else if (refusal instanceof InProgressException) {
      return new InProgress<>((InProgressException) refusal);
    } else if (refusal instanceof BusyException) {
      return new Busy<>((BusyException) refusal);
    }
    return new Dropped<>();
  }

  /** The handler ran, and returned a value, or rejected the event. */
  public static final class Ran<T extends @Nullable Object> extends Outcome<T> {
    private final @Nullable T value;
    private final @Nullable String rejection;

    Ran(@Nullable T value, @Nullable String rejection) {
      this.value = value;
      this.rejection = rejection;
    }

    /** What the handler returned; null if it rejected the event. */
    public @Nullable T value() {
      return value;
    }

    /** Why the handler rejected the event; null if it did not. */
    public @Nullable String rejection() {
      return rejection;
    }

    @Override
    public <R extends @Nullable Object> R match(
        Function<? super Ran<T>, ? extends R> ran,
        Function<? super Duplicate<T>, ? extends R> duplicate,
        Function<? super GaveUp<T>, ? extends R> gaveUp,
        Function<? super InProgress<T>, ? extends R> inProgress,
        Function<? super Busy<T>, ? extends R> busy,
        Function<? super Dropped<T>, ? extends R> dropped) {
      return ran.apply(this);
    }
  }

  /** The event has been handled; acknowledge it. */
  public static final class Duplicate<T extends @Nullable Object> extends Outcome<T> {
    private final DuplicateException refusal;
    private final Type type;

    Duplicate(DuplicateException refusal, Type type) {
      this.refusal = refusal;
      this.type = type;
    }

    /**
     * What the run returned that handled the event; null if nothing was stored. Throws {@link ResultException} if it
     * cannot be read as this type.
     */
    public @Nullable T result() {
      return refusal.stored().decode(type);
    }

    /** SUCCEEDED or REJECTED; null if the event was only marked. */
    public @Nullable String outcome() {
      return refusal.outcome();
    }

    /** Why the event was rejected. */
    public String detail() {
      return refusal.detail();
    }

    @Override
    public <R extends @Nullable Object> R match(
        Function<? super Ran<T>, ? extends R> ran,
        Function<? super Duplicate<T>, ? extends R> duplicate,
        Function<? super GaveUp<T>, ? extends R> gaveUp,
        Function<? super InProgress<T>, ? extends R> inProgress,
        Function<? super Busy<T>, ? extends R> busy,
        Function<? super Dropped<T>, ? extends R> dropped) {
      return duplicate.apply(this);
    }
  }

  /** All attempts failed, and no run has handled the event; acknowledge it, and alert a person. */
  public static final class GaveUp<T extends @Nullable Object> extends Outcome<T> {
    private final GaveUpException refusal;

    GaveUp(GaveUpException refusal) {
      this.refusal = refusal;
    }

    /** How many attempts there were. */
    public int attempts() {
      return refusal.attempts();
    }

    /** How the latest attempt failed. */
    public String detail() {
      return refusal.detail();
    }

    @Override
    public <R extends @Nullable Object> R match(
        Function<? super Ran<T>, ? extends R> ran,
        Function<? super Duplicate<T>, ? extends R> duplicate,
        Function<? super GaveUp<T>, ? extends R> gaveUp,
        Function<? super InProgress<T>, ? extends R> inProgress,
        Function<? super Busy<T>, ? extends R> busy,
        Function<? super Dropped<T>, ? extends R> dropped) {
      return gaveUp.apply(this);
    }
  }

  /** Another run handles the event; refuse the delivery if its sender redelivers. */
  public static final class InProgress<T extends @Nullable Object> extends Outcome<T> {
    private final InProgressException refusal;

    InProgress(InProgressException refusal) {
      this.refusal = refusal;
    }

    /** Who handles the event. */
    public String holder() {
      return refusal.holder();
    }

    /** The attempt of the run that handles it. */
    public int attempt() {
      return refusal.attempt();
    }

    /** When to ask again. */
    public Duration retryAfter() {
      return refusal.retryAfter();
    }

    @Override
    public <R extends @Nullable Object> R match(
        Function<? super Ran<T>, ? extends R> ran,
        Function<? super Duplicate<T>, ? extends R> duplicate,
        Function<? super GaveUp<T>, ? extends R> gaveUp,
        Function<? super InProgress<T>, ? extends R> inProgress,
        Function<? super Busy<T>, ? extends R> busy,
        Function<? super Dropped<T>, ? extends R> dropped) {
      return inProgress.apply(this);
    }
  }

  /** Another turn has the conversation, and the wait is over. */
  public static final class Busy<T extends @Nullable Object> extends Outcome<T> {
    private final BusyException refusal;

    Busy(BusyException refusal) {
      this.refusal = refusal;
    }

    /** Who has the conversation. */
    public String holder() {
      return refusal.holder();
    }

    /** How many callers wait for it. */
    public int queueLength() {
      return refusal.queueLength();
    }

    /** When to ask again. */
    public Duration retryAfter() {
      return refusal.retryAfter();
    }

    @Override
    public <R extends @Nullable Object> R match(
        Function<? super Ran<T>, ? extends R> ran,
        Function<? super Duplicate<T>, ? extends R> duplicate,
        Function<? super GaveUp<T>, ? extends R> gaveUp,
        Function<? super InProgress<T>, ? extends R> inProgress,
        Function<? super Busy<T>, ? extends R> busy,
        Function<? super Dropped<T>, ? extends R> dropped) {
      return busy.apply(this);
    }
  }

  /** The server is unavailable, and {@link Unavailability#DROP} is set. */
  public static final class Dropped<T extends @Nullable Object> extends Outcome<T> {
    @Override
    public <R extends @Nullable Object> R match(
        Function<? super Ran<T>, ? extends R> ran,
        Function<? super Duplicate<T>, ? extends R> duplicate,
        Function<? super GaveUp<T>, ? extends R> gaveUp,
        Function<? super InProgress<T>, ? extends R> inProgress,
        Function<? super Busy<T>, ? extends R> busy,
        Function<? super Dropped<T>, ? extends R> dropped) {
      return dropped.apply(this);
    }
  }
}
