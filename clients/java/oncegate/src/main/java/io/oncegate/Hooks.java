package io.oncegate;

/** What a program may observe, such as for metrics. The methods must not block, and must not close the gate. */
public interface Hooks {
  /** A turn was granted. */
  default void onBegin(Delivery delivery) {}

  /** A turn or lease waits in the queue; 1 is next. */
  default void onQueued(int position) {}

  /** A turn or lease was lost. */
  default void onLost(LostReason reason) {}

  /** A turn ended: SUCCEEDED, FAILED, REJECTED, LOST or UNKNOWN. */
  default void onEnd(String outcome) {}
}
