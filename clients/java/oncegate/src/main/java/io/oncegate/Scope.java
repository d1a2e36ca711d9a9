package io.oncegate;

/** How much of a payload's conversation is one session. */
public enum Scope {
  /** The thread. */
  THREAD,
  /** The whole channel. */
  CHANNEL,
  /** Everything that one user does. */
  USER,
  /** No session; the event alone is claimed. */
  EVENT
}
