package io.oncegate.testing;

/** A turn that is in progress. */
public final class RunningTurn {
  private final String event;
  private final String holder;
  private final int attempt;

  RunningTurn(String event, String holder, int attempt) {
    this.event = event;
    this.holder = holder;
    this.attempt = attempt;
  }

  /** The id of its event. */
  public String event() {
    return event;
  }

  /** Who has it. */
  public String holder() {
    return holder;
  }

  /** How many times its event has been claimed. */
  public int attempt() {
    return attempt;
  }

  @Override
  public String toString() {
    return event + " by " + holder + ", attempt " + attempt;
  }
}
