package io.oncegate;

import java.time.Duration;
import java.util.Map;

/** A lease that is asked for, and its options. One request is used once. */
public final class LeaseRequest {
  private final Gate gate;
  private final Session session;
  private final Config config;

  LeaseRequest(Gate gate, Session session) {
    this.gate = gate;
    this.session = session;
    config = gate.config.copy();
  }

  /** Sets how long to queue while the conversation is busy. 0 to 10 min; default 0. */
  public LeaseRequest waitFor(Duration wait) {
    config.wait = wait;
    return this;
  }

  /** Sets how long the lease runs unless it is renewed; see {@link Gate.Builder#ttl}. */
  public LeaseRequest ttl(Duration ttl) {
    config.ttl = ttl;
    return this;
  }

  /** Sets how long to try while the server is unavailable or overloaded. */
  public LeaseRequest patience(Duration patience) {
    config.patience = patience;
    return this;
  }

  /** Binds the session to the work that it is for, such as an issue key. */
  public LeaseRequest epic(String id) {
    config.epic = id;
    return this;
  }

  /** Sets labels that are shown with the lease. At most 8. */
  public LeaseRequest labels(Map<String, String> labels) {
    config.labels = Map.copyOf(labels);
    return this;
  }

  /** Sets whether a loss interrupts the thread; see {@link Gate.Builder#interruptOnLoss}. */
  public LeaseRequest interruptOnLoss(boolean interrupts) {
    config.interrupts = interrupts;
    return this;
  }

  /**
   * Acquires the lease, for try-with-resources. Throws {@link BusyException} if another holder has it, and the wait is
   * over; otherwise as {@link TurnRequest#begin}.
   */
  public Lease acquire() {
    config.check();
    Lease lease = new Lease(gate, config.copy(), session);
    try {
      gate.start(lease, lease::begin);
    } catch (Failure failed) {
      throw failed.published();
    }
    return lease;
  }
}
