package io.oncegate;

import io.oncegate.v1.HoldSessionLeaseRequest;
import io.oncegate.v1.HoldSessionLeaseResponse;
import io.oncegate.v1.IdempotencyServiceGrpc;
import io.oncegate.v1.ReleaseSessionLeaseRequest;
import io.oncegate.v1.RenewSessionLeaseRequest;
import io.oncegate.v1.SessionLease;
import java.lang.System.Logger.Level;
import java.util.concurrent.TimeUnit;
import org.jspecify.annotations.Nullable;

/** A conversation, held. */
public final class Lease extends Hold {
  private static final long RELEASE_EFFORT = TimeUnit.SECONDS.toNanos(5);

  private final HoldSessionLeaseRequest.Builder request;
  private volatile @Nullable Stream<HoldSessionLeaseRequest, HoldSessionLeaseResponse> stream;
  private volatile SessionLease lease = SessionLease.getDefaultInstance();

  Lease(Gate gate, Config config, Session session) {
    super(gate, config);
    request = config.holdRequest(session, gate.holder);
  }

  /** The tenant. */
  public String team() {
    return lease.getTeamId();
  }

  /** The session's canonical id. */
  public String session() {
    return lease.getSessionId();
  }

  /** The work that the session is bound to; empty: none. */
  public String epic() {
    return lease.getEpicId();
  }

  /**
   * Ends the lease, and waits for the server's answer; if there is none within 5 s, the session is free when the TTL
   * ends. Throws {@link LeaseLostException} if the lease was lost, and does nothing if it has ended.
   */
  public void release() {
    leaveBody();
    if (!finishByHolder()) {
      LostReason reason = lostReason();
      if (reason != null) {
        throw lostBy(reason, null);
      }
      return;
    }
    gate.track(() -> giveBack(""));
    gate.forget(this);
  }

  /** Releases the lease. */
  @Override
  public void close() {
    try {
      release();
    } catch (LeaseLostException e) {
      config.log.log(Level.DEBUG, "a lease that was lost is not released");
    }
  }

  @Override
  boolean isLease() {
    return true;
  }

  @Override
  LeaseLostException lostBy(LostReason reason, @Nullable Failure failure) {
    return new LeaseLostException(reason, failure == null ? null : failure.getCause());
  }

  @Override
  void startOver() {
    request.setRequestId(Config.newRequestId());
  }

  @Override
  Stream<?, ?> open(long wait) {
    HoldSessionLeaseRequest first = request.setWait(Durations.of(wait)).build();
    Stream<HoldSessionLeaseRequest, HoldSessionLeaseResponse> opened =
        Stream.open(gate.link, IdempotencyServiceGrpc.getHoldSessionLeaseMethod(), first);
    stream = opened;
    return opened;
  }

  private HoldSessionLeaseResponse next(long until) throws Failure, InterruptedException {
    Stream<HoldSessionLeaseRequest, HoldSessionLeaseResponse> opened = stream;
    if (opened == null) {
      throw new AssertionError("there is no stream");
    }
    return opened.read(until);
  }

  @Override
  boolean readAnswer(long until) throws Failure, InterruptedException {
    HoldSessionLeaseResponse message = next(until);
    switch (message.getNewsCase()) {
      case GRANTED:
        lease = message.getGranted().getLease();
        synchronized (lock) {
          fence = lease.getFencingToken();
        }
        return true;
      case QUEUED:
        config.queued(message.getQueued());
        return false;
      case HELD:
        throw Turn.busy(message.getHeld());
      default:
        return false;
    }
  }

  /** Renews once beside the stream: from then on the lease outlives the stream. */
  @Override
  void makeSure() throws Failure, InterruptedException {
    read(lease, sentAt());
    confirm();
  }

  @Override
  boolean readNews(long until) throws Failure, InterruptedException {
    HoldSessionLeaseResponse message = next(until);
    switch (message.getNewsCase()) {
      case RENEWED:
        read(message.getRenewed().getLease(), sentAt());
        return false;
      case WAITING:
        waiting(message.getWaiting().getWaiters());
        return false;
      default:
        return false;
    }
  }

  @Override
  void renew(long until, boolean interruptible) throws Failure, InterruptedException {
    RenewSessionLeaseRequest renewal =
        RenewSessionLeaseRequest.newBuilder()
            .setSession(request.getSession())
            .setLeaseId(lease.getLeaseId())
            .setTtl(Durations.of(config.ttl))
            .build();
    var answer =
        gate.link.callUntil(
            IdempotencyServiceGrpc.getRenewSessionLeaseMethod(),
            renewal,
            until - Link.SHORTEST,
            renewTimeout(),
            interruptible,
            stopped);
    read(answer.message.getLease(), answer.sent);
  }

  private void read(SessionLease read, long asked) {
    trust(Durations.nanos(read.getRemaining()), Durations.nanos(read.getElapsed()), asked, 0);
  }

  @Override
  void giveBack(String detail) {
    ReleaseSessionLeaseRequest release =
        ReleaseSessionLeaseRequest.newBuilder()
            .setSession(request.getSession())
            .setLeaseId(lease.getLeaseId())
            .build();
    try {
      gate.link.callUntil(
          IdempotencyServiceGrpc.getReleaseSessionLeaseMethod(),
          release,
          Clock.now() + RELEASE_EFFORT,
          Link.CALL_TIMEOUT);
    } catch (Failure | RuntimeException e) {
      config.log.log(
          Level.WARNING, "the release of a lease failed; the server frees it when its TTL ends", e);
    } finally {
      breakStream();
    }
  }
}
