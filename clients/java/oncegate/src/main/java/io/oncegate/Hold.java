package io.oncegate;

import java.lang.System.Logger.Level;
import java.time.Duration;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.jspecify.annotations.Nullable;

/**
 * What a turn and a lease have in common: how each is granted, kept, carried on and lost. Its methods may be called by
 * several threads.
 *
 * <p>Two threads use it: the holder's, and the keeper, which runs beside the body.
 */
public abstract class Hold implements AutoCloseable {
  /** In a queue the server says something every 20 s. */
  private static final long QUEUE_SILENCE = TimeUnit.SECONDS.toNanos(30);

  private static final long SECOND = TimeUnit.SECONDS.toNanos(1);
  private static final long HALF_SECOND = TimeUnit.MILLISECONDS.toNanos(500);

  final Gate gate;
  final Config config;
  private final CompletableFuture<LostReason> lost = new CompletableFuture<>();

  /** Stopped once it is over, or refused. */
  final Stop stopped = new Stop();

  /** The stream is not read any more: it has answered an end, or has broken. */
  final CountDownLatch answered = new CountDownLatch(1);

  /** The hooks know of the loss. */
  private final CountDownLatch reported = new CountDownLatch(1);

  private volatile @Nullable Thread reporter;

  final Object lock = new Object();

  // Guarded by lock.
  /** The body has got it. */
  private boolean granted;

  /** Ended or lost. The first of the two counts. */
  private boolean over;

  private @Nullable LostReason lostReason;

  /** The gate was closed before it was granted. */
  private boolean refused;

  /** That of the server; null without one. */
  private @Nullable Stream<?, ?> open;

  private @Nullable Failure endFailure;
  private boolean finished;
  private long sent;
  private long trustedEnd;

  /** The trusted end of what no stream keeps: that of the server, without the grace. */
  private long validEnd;

  private long probeAt;
  private boolean renewing;
  long fence;
  private int waiters;

  /** The thread of the body, which a loss interrupts; null outside of the body. */
  private @Nullable Thread body;

  private boolean interruptedBody;

  /** Its trusted end had passed at the watcher's last look. */
  private boolean isPast;

  /** Since the first look at which it had. */
  private long pastSince;

  Hold(Gate gate, Config config) {
    this.gate = gate;
    this.config = config;
  }

  // What a turn and a lease do differently.

  /** Makes the stream, and sends the request. */
  abstract Stream<?, ?> open(long wait);

  /** Reads a message of a stream that is not granted yet. True if it is granted now. */
  abstract boolean readAnswer(long until) throws Failure, InterruptedException;

  /** Reads a message of a stream that is granted. True if it is finished. */
  abstract boolean readNews(long until) throws Failure, InterruptedException;

  /** Makes a grant one that is trusted. */
  abstract void makeSure() throws Failure, InterruptedException;

  /** Extends it over the other connection. */
  abstract void renew(long until, boolean interruptible) throws Failure, InterruptedException;

  /** Ends it so that another run gets it at once. Its own failure does not count. */
  abstract void giveBack(String detail);

  /** Makes the next request an attempt of its own. */
  abstract void startOver();

  abstract boolean isLease();

  abstract LostException lostBy(LostReason reason, @Nullable Failure failure);

  // How it is granted.

  /** Waits until it is granted, and asks for another one if it is lost before it is trusted. */
  final void begin() throws Failure, InterruptedException {
    long waitUntil = Clock.now() + Durations.nanos(config.wait);
    Pauses pauses = new Pauses();
    while (true) {
      ask(waitUntil);
      try {
        admit();
        return;
      } catch (LostException e) {
        if (Clock.now() >= waitUntil + config.patienceNanos()) {
          throw Failure.unavailable("grants are lost on their way");
        }
      }
      startOver();
      pause(pauses.next());
    }
  }

  /** Waits for the grant. A broken request is repeated with its request id. */
  private void ask(long waitUntil) throws Failure, InterruptedException {
    Pauses pauses = new Pauses();
    long outage = 0; // since when the server is not heard of; 0: it is
    boolean renewed = false;
    while (true) {
      long asked = Clock.now();
      Asked result = askOnce(waitUntil, asked, outage);
      Failure failed = result.failed;
      if (failed == null) {
        return;
      }
      if (failed.outdated && !renewed) {
        renewed = true;
        continue;
      }
      if (result.heard) {
        outage = Clock.now();
      } else if (outage == 0) {
        outage = asked;
      }
      long left = outage + config.patienceNanos() - Clock.now();
      // The last attempt is at the end of the patience, unless the server asks for more.
      long delay = failed.retryAfter == 0 ? Math.min(pauses.next(), left) : failed.retryAfter;
      if (!failed.retryable() || left <= 0 || delay > left) {
        throw failed;
      }
      pause(delay);
    }
  }

  /** What came of one request. The failure, if there is one, may be worth a repetition. */
  private static final class Asked {
    final boolean heard;
    final @Nullable Failure failed;

    Asked(boolean heard, @Nullable Failure failed) {
      this.heard = heard;
      this.failed = failed;
    }
  }

  private Asked askOnce(long waitUntil, long asked, long outage) throws InterruptedException {
    boolean heard = false;
    boolean isGranted = false;
    long silentAt = Math.max((outage == 0 ? asked : outage) + config.patienceNanos(), asked + HALF_SECOND);
    synchronized (lock) {
      sent = asked;
    }
    try {
      use(open(Math.max(0, waitUntil - asked)));
      while (true) {
        isGranted = readAnswer(silentAt);
        if (isGranted) {
          return new Asked(true, null);
        }
        heard = true;
        silentAt = Clock.now() + QUEUE_SILENCE;
      }
    } catch (Failure failed) {
      throwIfRefused();
      return new Asked(heard, failed);
    } finally {
      if (!isGranted) {
        breakStream();
      }
    }
  }

  private void use(Stream<?, ?> stream) {
    synchronized (lock) {
      open = stream;
      if (!refused) {
        return;
      }
    }
    breakStream();
  }

  final void breakStream() {
    Stream<?, ?> stream;
    synchronized (lock) {
      stream = open;
      open = null;
    }
    if (stream != null) {
      stream.cancel();
    }
  }

  /** Whether a stream keeps it. */
  boolean hasStream() {
    synchronized (lock) {
      return open != null;
    }
  }

  /** Gives it to the body. What the body does not get after all goes back to the server. */
  private void admit() throws Failure, InterruptedException {
    boolean isGranted = false;
    try {
      makeSure();
      if (Thread.interrupted()) {
        throw new InterruptedException();
      }
      enter();
      isGranted = true;
    } catch (LostException e) {
      breakStream();
      isGranted = true; // nothing is to be given back
      throw e;
    } finally {
      if (!isGranted) {
        breakStream();
        gate.spawn(() -> giveBack("its holder did not begin"));
      }
    }
  }

  /** The body has got it. */
  final void enter() {
    synchronized (lock) {
      if (refused) {
        throw new GateClosedException();
      }
      granted = true;
      body = config.interrupts ? Thread.currentThread() : null;
    }
  }

  /** Renews from now on, instead of the stream. */
  final void carryOn() throws Failure, InterruptedException {
    breakStream();
    confirm();
    synchronized (lock) {
      renewing = true;
    }
  }

  /** Renews before the body runs, within the patience, until the trusted end lies ahead. */
  final void confirm() throws Failure, InterruptedException {
    long until = Clock.now() + Math.max(SECOND, Math.min(config.ttlNanos(), config.patienceNanos()));
    Pauses pauses = new Pauses();
    while (true) {
      try {
        renew(until, true);
      } catch (Failure failed) {
        throwIfRefused(); // which has cancelled the renewal
        LostReason reason = failed.lost();
        if (reason != null) {
          throw lostBy(reason, failed);
        }
        throw failed;
      }
      if (trustedLeft() > 0) {
        return;
      }
      if (Clock.now() >= until) {
        throw Failure.unavailable("renewals are answered after their trusted end");
      }
      pause(pauses.next());
    }
  }

  /** Ends early if it is not wanted any more. */
  private void pause(long nanos) throws InterruptedException {
    if (stopped.await(nanos)) {
      throwIfRefused();
    }
  }

  private void throwIfRefused() {
    synchronized (lock) {
      if (refused) {
        throw new GateClosedException();
      }
    }
  }

  /**
   * The gate is closed. If it has not begun, its beginning throws.
   *
   * <p>The server grants nothing to a cancelled stream. A grant that is on its way lasts for its grace.
   */
  final void refuse() {
    synchronized (lock) {
      if (granted) {
        return;
      }
      refused = true;
    }
    stopped.stop();
    breakStream();
  }

  // How it is kept.

  /** Keeps it until it is lost, or its holder has ended it. */
  final void keep() {
    try {
      boolean isLeft;
      try {
        isLeft = readStream();
      } finally {
        answered.countDown(); // an end waits for it
      }
      if (isLeft) {
        keepRenewing();
      }
    } catch (RuntimeException | Error e) {
      config.log.log(Level.ERROR, "the thread that keeps a turn or lease has failed", e);
      lose(LostReason.EXPIRED);
    }
  }

  /** It was granted, and nothing can keep it: gives it back. */
  final void leave() {
    leaveBody();
    breakStream();
    if (finish(null)) {
      giveBack("no thread can keep it");
    }
  }

  /**
   * Loses it if its keeper has not, although its trusted end has passed. After a standstill of the process its keeper
   * first reads what came meanwhile: it is lost at a second look. Returns after how many nanoseconds to look again.
   */
  final long lookAtClock() {
    synchronized (lock) {
      if (!granted || over) {
        return Long.MAX_VALUE;
      }
      long now = Clock.now();
      if (trustedEnd > now) {
        isPast = false;
        return trustedEnd - now;
      }
      if (!isPast) {
        isPast = true;
        pastSince = now;
      }
      long left = pastSince + Waiting.CATCH_UP - now;
      if (left > 0) {
        return left;
      }
    }
    lose(LostReason.EXPIRED);
    return Long.MAX_VALUE;
  }

  /** Reads the stream to its end. Returns whether there is something to carry on then. */
  private boolean readStream() {
    while (true) {
      boolean isOpen = hasStream();
      long until;
      synchronized (lock) {
        if (!isOpen) {
          return !over;
        }
        until = probeAt;
      }
      try {
        if (readNews(until)) {
          synchronized (lock) {
            finished = true;
          }
          return false;
        }
      } catch (Failure failed) {
        return broke(failed);
      } catch (InterruptedException e) {
        throw new AssertionError(e); // no other thread has this one
      }
    }
  }

  /** The stream has ended. Returns whether there is something to carry on. */
  private boolean broke(Failure failed) {
    LostReason loss = failed.loss();
    synchronized (lock) {
      // An end that is sent from now on must not wait for an answer of this stream.
      endFailure = failed;
      answered.countDown();
      if (over) {
        return false;
      }
      if (loss == null) {
        renewing = true;
        if (failed.reason.equals("DRAINING")) { // the server says that it keeps its grants
          trustedEnd = validEnd;
        }
      }
    }
    if (loss != null) {
      lose(loss);
      return false;
    }
    breakStream();
    return true;
  }

  private void keepRenewing() {
    while (true) {
      long until;
      synchronized (lock) {
        if (over) {
          return;
        }
        until = trustedEnd;
      }
      try {
        renew(until, false);
      } catch (Failure failed) {
        LostReason loss = failed.loss();
        lose(loss == null ? LostReason.EXPIRED : loss);
        return;
      } catch (GateClosedException e) {
        lose(LostReason.CLOSED);
        return;
      } catch (MisconfiguredException e) {
        lose(LostReason.EXPIRED);
        return;
      } catch (InterruptedException e) {
        throw new AssertionError(e); // no other thread has this one
      }
      long left = trustedLeft();
      if (left <= 0) { // before max_hold, the server grants less than the margin
        lose(LostReason.EXPIRED);
        return;
      }
      // A turn that is longer than its lease has less of the TTL left.
      long every = Math.min(config.ttlNanos() / 3, left / 2);
      Waiting.uninterruptibly(stopped::await, every);
    }
  }

  /**
   * Moves the trusted end: the server said how long is left, and how long it took to say so.
   *
   * <p>With a grace: the server may see a break of the stream that this side does not see, and keeps a turn of the
   * stream for so long only.
   */
  final void trust(long remaining, long elapsed, long asked, long grace) {
    long lasts = grace > 0 ? Math.min(remaining, grace) : remaining;
    synchronized (lock) {
      trustedEnd = asked + elapsed + lasts - config.margin();
      validEnd = trustedEnd + remaining - lasts;
      // A call renews after silence. Early, if it is needed anyway: the trusted end comes before the server's next
      // renewal.
      long left = trustedEnd - Clock.now();
      long ttl = config.ttlNanos();
      long latest = left / 10 * 9;
      if (latest <= ttl / 3) {
        latest = left / 2;
      }
      probeAt = Clock.now() + Math.min(ttl / 5 * 2, latest);
    }
  }

  /** How long one renewal may take before it is repeated. */
  final long renewTimeout() {
    return Math.max(HALF_SECOND, config.ttlNanos() / 20);
  }

  final long trustedLeft() {
    synchronized (lock) {
      return trustedEnd - Clock.now();
    }
  }

  final long sentAt() {
    synchronized (lock) {
      return sent;
    }
  }

  final void waiting(int count) {
    synchronized (lock) {
      waiters = count;
    }
  }

  /** Whether the stream has answered an end. */
  final boolean isFinished() {
    synchronized (lock) {
      return finished;
    }
  }

  final @Nullable Failure endFailure() {
    synchronized (lock) {
      return endFailure;
    }
  }

  // How it ends.

  /** Makes it over, with the reason of its loss if it is one. False if it was over before. */
  final boolean finish(@Nullable LostReason reason) {
    synchronized (lock) {
      if (over) {
        return false;
      }
      over = true;
      lostReason = reason;
      if (reason != null) {
        reporter = Thread.currentThread();
      }
    }
    stopped.stop();
    return true;
  }

  /** Makes it over by its holder. False if it was over before; the hooks then know of a loss. */
  final boolean finishByHolder() {
    if (finish(null)) {
      return true;
    }
    if (lostReason() != null && reporter != Thread.currentThread()) {
      Waiting.uninterruptibly(
          nanos -> {
            reported.await();
            return true;
          },
          0);
    }
    return false;
  }

  /** It ended without its holder, unless it was over before. */
  final void lose(LostReason reason) {
    if (finish(reason)) {
      breakStream();
      reportLoss(reason);
    }
  }

  /** The gate ends it under its holder. */
  final void closeByGate() {
    if (isGuarded() && finish(LostReason.CLOSED)) {
      try {
        reportLoss(LostReason.CLOSED);
      } finally {
        giveBack("the gate was closed");
      }
    }
  }

  private void reportLoss(LostReason reason) {
    try {
      synchronized (lock) {
        if (body != null) {
          interruptedBody = true;
          body.interrupt();
        }
      }
      gate.forget(this);
      config.log.log(Level.WARNING, "a " + (isLease() ? "lease" : "turn") + " was lost: " + reason);
      config.hooks.onLost(reason);
      if (!isLease()) {
        config.hooks.onEnd("LOST");
      }
    } finally {
      reported.countDown(); // its holder waits for it
      lost.complete(reason);
    }
  }

  /** From here on, a loss interrupts nobody. If it has interrupted this thread, that is taken back. */
  final void leaveBody() {
    boolean takeBack;
    synchronized (lock) {
      takeBack = interruptedBody && body == Thread.currentThread();
      body = null;
    }
    if (takeBack) {
      // The handler may have used it up already.
      Thread.interrupted();
    }
  }

  final boolean isGuarded() {
    synchronized (lock) {
      return granted;
    }
  }

  // What its holder sees.

  /** Whether it is held. False for a turn whose handler runs unguarded, and after its end. */
  public final boolean held() {
    synchronized (lock) {
      return granted && !over;
    }
  }

  /** Why it was lost; null if it was not. */
  public final @Nullable LostReason lostReason() {
    synchronized (lock) {
      return lostReason;
    }
  }

  /**
   * Completes if it is lost. By default the thread that began it is interrupted, too; see {@link
   * Gate.Builder#interruptOnLoss}. What is called then must not block, and must not close the gate.
   */
  public final CompletableFuture<LostReason> lost() {
    return lost.copy();
  }

  /** The fencing token, to be sent with each write; 0 without a session. */
  public final long fence() {
    synchronized (lock) {
      return fence;
    }
  }

  /** "stream" while the server renews it over a stream, and "renew" while this library does by calls. */
  public final String keptBy() {
    synchronized (lock) {
      return renewing ? "renew" : "stream";
    }
  }

  /** How many callers wait for the session. */
  public final int waiters() {
    synchronized (lock) {
      return waiters;
    }
  }

  /**
   * The time to the trusted end. It moves with each renewal. A turn whose handler runs unguarded has the longest
   * duration left that nanoseconds can express.
   */
  public final Duration left() {
    synchronized (lock) {
      return Duration.ofNanos(granted ? trustedEnd - Clock.now() : Long.MAX_VALUE);
    }
  }

  /**
   * Throws {@link LostException} if it is lost or has ended, or its trusted end has passed. Call it before an outside
   * write.
   */
  public final void check() {
    LostReason reason;
    synchronized (lock) {
      if (over) {
        reason = lostReason == null ? LostReason.ENDED : lostReason;
      } else if (granted && trustedEnd <= Clock.now()) {
        reason = LostReason.EXPIRED;
      } else {
        return;
      }
    }
    throw lostBy(reason, null);
  }

  @Override
  public abstract void close();
}
