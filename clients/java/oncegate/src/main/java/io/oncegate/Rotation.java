package io.oncegate;

import java.util.concurrent.TimeUnit;
import org.jspecify.annotations.Nullable;

/** The certificates that a gate uses. */
final class Rotation {
  /**
   * How long after a look at the files of the certificates another one follows, while calls are made; and after a
   * connection has failed.
   */
  private static final long LOOK_AGAIN = TimeUnit.SECONDS.toNanos(10);

  private static final long LOOK_SOON = TimeUnit.SECONDS.toNanos(1);

  private final @Nullable WatchedFile ca;
  private final @Nullable WatchedFile cert;
  private final @Nullable WatchedFile key;
  private final Outage outage;

  // Guarded by this.
  private @Nullable Certificates used;
  private long looked;
  private boolean hurried;

  Rotation(System.Logger log, @Nullable WatchedFile ca, @Nullable WatchedFile cert, @Nullable WatchedFile key) {
    this.ca = ca;
    this.cert = cert;
    this.key = key;
    outage = new Outage(log, "the certificates that were read before stay in use");
  }

  /** For the next call. Files that cannot be used now leave the last ones in use. */
  synchronized Certificates current(boolean atOnce) {
    long pause = hurried ? LOOK_SOON : LOOK_AGAIN;
    if (used != null && !atOnce && Clock.now() - looked < pause) {
      return used;
    }
    looked = Clock.now();
    hurried = false;
    try {
      Certificates found = Certificates.read(ca, cert, key, used);
      used = found;
      outage.over();
      return found;
    } catch (MisconfiguredException e) {
      if (used == null) {
        throw e;
      }
      outage.warn(e);
      return used;
    }
  }

  /** Makes the next look come earlier. */
  synchronized void lookSoon() {
    hurried = true;
  }
}
