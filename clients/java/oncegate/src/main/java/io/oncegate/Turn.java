package io.oncegate;

import com.google.protobuf.ByteString;
import io.oncegate.v1.BeginTurnRequest;
import io.oncegate.v1.FinishTurnRequest;
import io.oncegate.v1.LeaseHeld;
import io.oncegate.v1.ProcessedEvent;
import io.oncegate.v1.RenewTurnRequest;
import io.oncegate.v1.RunTurnRequest;
import io.oncegate.v1.RunTurnResponse;
import io.oncegate.v1.TurnEnd;
import io.oncegate.v1.TurnInProgress;
import io.oncegate.v1.TurnOutcome;
import io.oncegate.v1.TurnServiceGrpc;
import java.lang.System.Logger.Level;
import java.nio.ByteBuffer;
import java.nio.CharBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.concurrent.TimeUnit;
import org.jspecify.annotations.Nullable;

/**
 * One event, claimed, in its conversation's turn.
 *
 * <p>Handlers that {@link TurnRequest#run} calls only look at it. A turn of {@link TurnRequest#begin} is ended by its
 * holder: by {@link #succeed}, {@link #reject}, {@link #fail} or {@link #detach}, and by {@link #close} in any case.
 */
public final class Turn extends Hold {
  static final int MAX_DETAIL = 2048;

  /** How long the stream may take to answer an end before FinishTurn is called. */
  private static final long ANSWER_TIME = TimeUnit.SECONDS.toNanos(2);

  /** For an end that the author does not wait for: that of a failed handler. */
  private static final long FAIL_EFFORT = TimeUnit.SECONDS.toNanos(2);

  /** The least effort for an end whose result counts. */
  private static final long FINISH_EFFORT = TimeUnit.SECONDS.toNanos(5);

  private final @Nullable Delivery delivery;
  private final BeginTurnRequest.@Nullable Builder request;
  private volatile @Nullable Stream<RunTurnRequest, RunTurnResponse> stream;

  // Guarded by lock.
  private String id = "";
  private String team = "";
  private int attempt;
  private boolean detached;

  Turn(Gate gate, Config config, Delivery delivery) {
    super(gate, config);
    this.delivery = delivery;
    request = config.beginRequest(delivery, gate.holder);
    team = request.getEvent().getTeamId();
  }

  /** One that another process began. */
  Turn(Gate gate, Config config, String id) {
    super(gate, config);
    this.id = id;
    delivery = null;
    request = null;
  }

  /** Names the turn for {@link Gate#adopt} in another process. Keep it secret. */
  public String id() {
    synchronized (lock) {
      return id;
    }
  }

  /** The tenant, if the delivery or its session names it. */
  public String team() {
    synchronized (lock) {
      return team;
    }
  }

  /** How many times the event has been claimed, this claim included. 0 if unguarded. */
  public int attempt() {
    synchronized (lock) {
      return attempt;
    }
  }

  @Override
  boolean isLease() {
    return false;
  }

  @Override
  TurnLostException lostBy(LostReason reason, @Nullable Failure failure) {
    return lostBy(reason, null, failure);
  }

  private TurnLostException lostBy(LostReason reason, @Nullable Object value, @Nullable Failure failure) {
    return new TurnLostException(reason, value, failure == null ? null : failure.getCause());
  }

  private BeginTurnRequest.Builder request() {
    if (request == null) {
      throw new AssertionError("another process began this turn");
    }
    return request;
  }

  @Override
  void startOver() {
    request().setRequestId(Config.newRequestId());
  }

  @Override
  Stream<?, ?> open(long wait) {
    request().setWait(Durations.of(wait));
    RunTurnRequest begin = RunTurnRequest.newBuilder().setBegin(request()).build();
    Stream<RunTurnRequest, RunTurnResponse> opened =
        Stream.open(gate.link, TurnServiceGrpc.getRunTurnMethod(), begin);
    stream = opened;
    return opened;
  }

  private Stream<RunTurnRequest, RunTurnResponse> stream() {
    Stream<RunTurnRequest, RunTurnResponse> opened = stream;
    if (opened == null) {
      throw new AssertionError("there is no stream");
    }
    return opened;
  }

  @Override
  boolean readAnswer(long until) throws Failure, InterruptedException {
    RunTurnResponse message = stream().read(until);
    switch (message.getNewsCase()) {
      case GRANTED:
        synchronized (lock) {
          id = message.getGranted().getTurn().getTurnId();
        }
        read(message.getGranted().getTurn(), sentAt(), config.grace());
        return true;
      case QUEUED:
        config.queued(message.getQueued());
        return false;
      case DUPLICATE:
        ProcessedEvent handled = message.getDuplicate().getEvent();
        throw new DuplicateException(
            outcomeName(handled.getOutcome()),
            handled.getDetail(),
            new Stored(message.getDuplicate().getResult(), message.getDuplicate().getResultType(), config.codec));
      case GAVE_UP:
        ProcessedEvent event = message.getGaveUp().getEvent();
        throw new GaveUpException(event.getAttempt(), event.getDetail());
      case IN_PROGRESS:
        TurnInProgress other = message.getInProgress();
        throw new InProgressException(
            other.getHolder(), other.getAttempt(), Durations.read(other.getRetryAfter()));
      case BUSY:
        throw busy(message.getBusy());
      default:
        return false;
    }
  }

  static BusyException busy(LeaseHeld held) {
    return new BusyException(
        held.getHolder(), held.getQueueLength(), Durations.read(held.getRetryAfter()));
  }

  /** The name without its prefix; null for a mark. */
  static @Nullable String outcomeName(TurnOutcome outcome) {
    return outcome == TurnOutcome.TURN_OUTCOME_UNSPECIFIED || outcome == TurnOutcome.UNRECOGNIZED
        ? null
        : outcome.name().substring("TURN_OUTCOME_".length());
  }

  /** Renews a grant that was long on its way, before the body runs. */
  @Override
  void makeSure() throws Failure, InterruptedException {
    if (trustedLeft() <= 0) {
      carryOn();
    }
  }

  /** Carries on a turn that another process began. */
  void adopt() throws Failure, InterruptedException {
    carryOn();
    enter();
  }

  @Override
  boolean readNews(long until) throws Failure, InterruptedException {
    RunTurnResponse message = stream().read(until);
    switch (message.getNewsCase()) {
      case RENEWED:
        read(message.getRenewed().getTurn(), sentAt(), config.grace());
        return false;
      case WAITING:
        waiting(message.getWaiting().getWaiters());
        return false;
      case FINISHED:
        return true;
      default:
        return false;
    }
  }

  @Override
  void renew(long until, boolean interruptible) throws Failure, InterruptedException {
    RenewTurnRequest renewal =
        RenewTurnRequest.newBuilder()
            .setTurnId(id())
            .setClaimTtl(Durations.of(config.ttl))
            .setLeaseTtl(Durations.of(config.ttl))
            .build();
    var answer =
        gate.link.callUntil(
            TurnServiceGrpc.getRenewTurnMethod(),
            renewal,
            until - Link.SHORTEST,
            renewTimeout(),
            interruptible,
            stopped);
    read(answer.message.getTurn(), answer.sent, 0);
  }

  /** Takes over what the server says of the turn. */
  private void read(io.oncegate.v1.Turn turn, long asked, long grace) {
    long remaining = Durations.nanos(turn.getRemaining());
    long elapsed = Durations.nanos(turn.getElapsed());
    synchronized (lock) {
      attempt = turn.getAttempt();
      if (turn.hasLease()) {
        team = turn.getLease().getTeamId();
        fence = turn.getLease().getFencingToken();
        remaining = Math.min(remaining, Durations.nanos(turn.getLease().getRemaining()));
        elapsed = Math.min(elapsed, Durations.nanos(turn.getLease().getElapsed()));
      }
    }
    trust(remaining, elapsed, asked, grace);
  }

  /**
   * Ends the turn: the event is handled, and duplicates get the result. Nothing is stored for null.
   *
   * <p>Throws {@link TurnLostException} or {@link OutcomeUnknownException}, with the result as their value, or {@link
   * InvalidException} for a result that is too large, which fails the turn.
   */
  public void succeed(@Nullable Object result) {
    Codec.Encoded encoded;
    try {
      encoded = result == null ? null : config.codec.encode(result);
    } catch (RuntimeException e) {
      fail("the result cannot be encoded: " + e.getMessage());
      throw e;
    }
    TurnEnd.Builder end = TurnEnd.newBuilder().setOutcome(TurnOutcome.TURN_OUTCOME_SUCCEEDED);
    if (encoded != null) {
      end.setResult(ByteString.copyFrom(encoded.data())).setResultType(encoded.resultType());
    }
    settle(end, result);
  }

  /** Ends the turn: the event is refused for good, and never delivered again. Throws as {@link #succeed}. */
  public void reject(@Nullable String detail) {
    String sent = detail == null ? "" : shortened(detail);
    settle(TurnEnd.newBuilder().setOutcome(TurnOutcome.TURN_OUTCOME_REJECTED).setDetail(sent), null);
  }

  /**
   * Ends the turn: the next delivery gets the event. It does nothing if the turn is over. An end that does not reach the
   * server within 2 s is made up for by the TTL. The detail may be null, as the message of an exception may be.
   */
  public void fail(@Nullable String detail) {
    leaveBody();
    if (isGuarded() && !isDetached() && finishByHolder()) {
      duringEnd(() -> giveBack(detail == null ? "" : detail));
      config.hooks.onEnd("FAILED");
    }
  }

  /** Ends the turn as {@link #fail(String)} does, with what an exception says of itself. */
  public void fail(Throwable problem) {
    String detail;
    try {
      detail = String.valueOf(problem.toString()); // which may be null
    } catch (RuntimeException | Error e) {
      detail = problem.getClass().getName();
    }
    fail(detail);
  }

  /** Fails the turn, unless it is over. */
  @Override
  public void close() {
    fail("its holder did not end it");
  }

  /**
   * Leaves the turn to another process, which has the TTL to {@link Gate#adopt} the returned id. The turn is over here.
   */
  public String detach() {
    check();
    if (!held()) {
      return "";
    }
    try {
      renew(Clock.now() + Math.min(trustedLeft(), config.patienceNanos()), false);
    } catch (Failure failed) {
      LostReason reason = failed.lost();
      if (reason == null && !held()) { // which has cancelled the renewal
        throw lostBy(reasonOfEnd(), null);
      }
      throw reason == null ? failed.published() : lostBy(reason, failed);
    } catch (InterruptedException e) {
      throw new AssertionError(e); // it is not interruptible
    }
    if (!finish(null)) {
      throw lostBy(reasonOfEnd(), null);
    }
    synchronized (lock) {
      detached = true;
    }
    leaveBody();
    breakStream();
    gate.forget(this);
    return id();
  }

  private LostReason reasonOfEnd() {
    LostReason reason = lostReason();
    return reason == null ? LostReason.ENDED : reason;
  }

  private boolean isDetached() {
    synchronized (lock) {
      return detached;
    }
  }

  /** Ends the turn for good. {@code value} is what the handler returned. */
  private void settle(TurnEnd.Builder end, @Nullable Object value) {
    leaveBody();
    if (!isGuarded() || isDetached()) {
      return; // nothing is to be ended, or another process does
    }
    if (!finishByHolder()) {
      throw lostBy(reasonOfEnd(), value, null);
    }
    Duration lasts = config.eventTtl != null ? config.eventTtl : delivery == null ? null : delivery.ttl();
    if (lasts != null) {
      end.setTtl(Durations.of(lasts));
    }
    String[] outcome = {"UNKNOWN"};
    try {
      duringEnd(
          () -> {
            try {
              end(end.build(), Clock.now() + Math.max(trustedLeft(), FINISH_EFFORT));
              outcome[0] = String.valueOf(outcomeName(end.getOutcome()));
            } catch (RuntimeException e) { // such as that of a gate that is closed
              throw new OutcomeUnknownException(id(), value, e);
            } catch (Failure failed) {
              LostReason reason = failed.lost();
              if (reason != null) {
                outcome[0] = "LOST";
                throw lostBy(reason, value, failed);
              }
              if (failed.retryable()) {
                throw new OutcomeUnknownException(id(), value, failed.getCause());
              }
              // The server refuses the end itself, such as a result that is too large.
              giveBack(failed.problem);
              outcome[0] = "FAILED";
              throw failed.published();
            }
          });
    } finally {
      config.hooks.onEnd(outcome[0]);
    }
  }

  @Override
  void giveBack(String detail) {
    TurnEnd end =
        TurnEnd.newBuilder().setOutcome(TurnOutcome.TURN_OUTCOME_FAILED).setDetail(shortened(detail)).build();
    try {
      end(end, Clock.now() + FAIL_EFFORT);
    } catch (Failure | RuntimeException e) {
      config.log.log(Level.DEBUG, "the end of a turn failed", e);
    }
  }

  /** Sends an end over the stream; without an answer there, by FinishTurn until the time given. */
  private void end(TurnEnd end, long until) throws Failure {
    try {
      if (hasStream() && endStream(end, until)) {
        return;
      }
      FinishTurnRequest.Builder finish =
          FinishTurnRequest.newBuilder()
              .setTurnId(id())
              .setOutcome(end.getOutcome())
              .setResult(end.getResult())
              .setResultType(end.getResultType())
              .setDetail(end.getDetail());
      if (end.hasTtl()) {
        finish.setTtl(end.getTtl());
      }
      gate.link.callUntil(TurnServiceGrpc.getFinishTurnMethod(), finish.build(), until, Link.CALL_TIMEOUT);
    } finally {
      breakStream();
    }
  }

  /** True if the stream has answered the end. */
  private boolean endStream(TurnEnd end, long until) throws Failure {
    long left = Math.min(ANSWER_TIME, Math.max(0, until - Clock.now()) / 2);
    if (!stream().send(RunTurnRequest.newBuilder().setEnd(end).build())) {
      return false;
    }
    // Its keeper reads the answer. Once the time is over, the stream is cancelled, which it reads too.
    long due = Clock.now() + left;
    if (!awaitAnswer(left) && !awaitAnswer(Waiting.catchUp(due))) {
      stream().cancel();
      awaitAnswer(ANSWER_TIME);
    }
    Failure failed = endFailure();
    if (failed != null && (failed.lost() != null || !failed.retryable())) {
      throw failed;
    }
    return isFinished();
  }

  private boolean awaitAnswer(long nanos) {
    return Waiting.uninterruptibly(left -> answered.await(left, TimeUnit.NANOSECONDS), nanos);
  }

  /** Lets the gate wait for an end before it closes its connections. */
  private void duringEnd(Runnable work) {
    try {
      gate.track(work);
    } finally {
      gate.forget(this);
    }
  }

  /** A detail that the server takes: cut between characters. */
  static String shortened(String detail) {
    ByteBuffer bytes = ByteBuffer.allocate(MAX_DETAIL);
    StandardCharsets.UTF_8.newEncoder().encode(CharBuffer.wrap(detail), bytes, true);
    return new String(bytes.array(), 0, bytes.position(), StandardCharsets.UTF_8);
  }
}
