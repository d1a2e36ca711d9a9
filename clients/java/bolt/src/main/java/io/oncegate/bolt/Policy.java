package io.oncegate.bolt;

import io.oncegate.BusyException;
import io.oncegate.DroppedException;
import io.oncegate.DuplicateException;
import io.oncegate.GateClosedException;
import io.oncegate.GaveUpException;
import io.oncegate.InProgressException;
import io.oncegate.LostReason;
import io.oncegate.NotGrantedException;
import io.oncegate.OncegateException;
import io.oncegate.OverloadedException;
import io.oncegate.UnavailableException;
import java.time.Duration;

/** How a delivery is handled whose turn was not granted. */
enum Policy {
  /** There is nothing left to do. */
  ACKNOWLEDGE,
  /** Slack delivers again, or shows the user that it failed. */
  REFUSE,
  /** Acknowledge; this process has the only copy now, and waits for the turn. */
  QUEUE,
  /** A retry cannot succeed: Bolt logs the exception, and answers with status 500. */
  THROW;

  /**
   * What follows from a refusal.
   *
   * @param canRefuse Slack delivers the event again if this delivery is refused
   * @param canWait acknowledged deliveries may wait for their turn
   */
  static Policy after(OncegateException refusal, boolean isSentOnce, boolean canRefuse, boolean canWait) {
    if (isFinal(refusal)) {
      return ACKNOWLEDGE;
    } else if (refusal instanceof BusyException) {
      return canRefuse && !canWait ? REFUSE : QUEUE;
    } else if (refusal instanceof GateClosedException) {
      return REFUSE; // another process may take it
    } else if (!isTemporary(refusal)) {
      return THROW;
    } else if (canRefuse) {
      return REFUSE;
    } else if (!isSentOnce) {
      return QUEUE;
    }
    return refusal instanceof InProgressException ? ACKNOWLEDGE : REFUSE; // the user sees that it failed
  }

  /** The event needs no further run. */
  static boolean isFinal(OncegateException refusal) {
    return refusal instanceof DuplicateException
        || refusal instanceof GaveUpException
        || refusal instanceof DroppedException;
  }

  /** A later request for the turn may be granted. */
  static boolean isTemporary(OncegateException refusal) {
    return refusal instanceof NotGrantedException
        || refusal instanceof OverloadedException
        || (refusal instanceof UnavailableException && !(refusal instanceof GateClosedException));
  }

  /** Another turn of the event may be granted after such a loss, and end otherwise. */
  static boolean isTemporary(LostReason loss) {
    return loss == LostReason.CLAIM_LOST || loss == LostReason.LEASE_LOST || loss == LostReason.EXPIRED;
  }

  static Duration retryAfter(OncegateException refusal) {
    if (refusal instanceof InProgressException) {
      return ((InProgressException) refusal).retryAfter();
    } else if (refusal instanceof BusyException) {
      return ((BusyException) refusal).retryAfter();
    } else if (refusal instanceof OverloadedException) {
      return ((OverloadedException) refusal).retryAfter();
    } else if (refusal instanceof UnavailableException) {
      return ((UnavailableException) refusal).retryAfter();
    }
    return Duration.ofSeconds(1);
  }
}
