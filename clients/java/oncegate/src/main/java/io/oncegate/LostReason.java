package io.oncegate;

/** Why a turn or lease ended without its holder. */
public enum LostReason {
  /** The server says that another run has the event, or that an operator has reset it. */
  CLAIM_LOST,
  /** The server says that another run has the conversation, or that an operator has released it. */
  LEASE_LOST,
  /** It was held for as long as the server allows. */
  MAX_HOLD,
  /** The server does not accept the caller any more. */
  DENIED,
  /** The trusted end has passed without news. */
  EXPIRED,
  /** The gate was closed. */
  CLOSED,
  /** The holder has ended it: from {@link Hold#check}, and from a second end of a turn. */
  ENDED
}
