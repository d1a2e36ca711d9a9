package io.oncegate;

import io.oncegate.v1.BeginTurnRequest;
import io.oncegate.v1.EventKey;
import io.oncegate.v1.HoldSessionLeaseRequest;
import io.oncegate.v1.LeaseQueued;
import io.oncegate.v1.MarkProcessedRequest;
import io.oncegate.v1.SessionKey;
import java.lang.System.Logger;
import java.net.InetAddress;
import java.net.UnknownHostException;
import java.time.Duration;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.TimeUnit;
import org.jspecify.annotations.Nullable;

/** The options of a gate, or of one turn or lease: a copy of its gate's, with its own. */
final class Config implements Cloneable {
  private static final long SECOND = TimeUnit.SECONDS.toNanos(1);

  String consumer = "";
  boolean shareSessions;
  @Nullable String holder;
  Hooks hooks = new Hooks() {};
  Logger log = System.getLogger("oncegate");

  Duration ttl = Duration.ofSeconds(45);
  @Nullable Duration grace;
  Duration patience = Duration.ofSeconds(10);
  Unavailability onUnavailable = Unavailability.RAISE;
  int maxAttempts = 5;
  Codec codec = Codec.json();
  boolean interrupts = true;

  Duration wait = Duration.ZERO;
  String epic = "";
  Map<String, String> labels = Map.of();
  @Nullable Duration eventTtl;

  Config copy() {
    try {
      return (Config) clone();
    } catch (CloneNotSupportedException e) {
      throw new AssertionError(e);
    }
  }

  /** Refuses a TTL of nothing, and a grace of which the margin leaves nothing. */
  void check() {
    if (ttlNanos() <= 0) {
      throw new InvalidException("a ttl of " + ttl + " is too short", "ttl", null);
    }
    if (grace() <= margin()) {
      throw new InvalidException(
          "a grace of "
              + TimeUnit.NANOSECONDS.toMillis(grace())
              + " ms is too short; use more than "
              + TimeUnit.NANOSECONDS.toMillis(margin())
              + " ms",
          "grace",
          null);
    }
  }

  long ttlNanos() {
    return Durations.nanos(ttl);
  }

  long patienceNanos() {
    return Durations.nanos(patience);
  }

  /** Is taken off the end of a turn or lease, for clocks and scheduling. */
  long margin() {
    return Math.min(SECOND, ttlNanos() / 10);
  }

  long grace() {
    long asked = grace != null ? Durations.nanos(grace) : Math.max(5 * SECOND, ttlNanos() / 2);
    return Math.min(ttlNanos(), asked);
  }

  String holder() {
    if (holder != null) {
      return holder;
    }
    String host;
    try {
      host = InetAddress.getLocalHost().getHostName();
    } catch (UnknownHostException e) {
      host = "";
    }
    return (consumer.isEmpty() ? "java" : consumer) + ":" + host + ":" + ProcessHandle.current().pid();
  }

  /** Consumers that share sessions name none. */
  private String sessionConsumer(String eventConsumer) {
    return shareSessions ? "" : eventConsumer;
  }

  static String newRequestId() {
    return UUID.randomUUID().toString();
  }

  BeginTurnRequest.Builder beginRequest(Delivery delivery, String holderName) {
    EventKey event = delivery.eventKey(consumer);
    BeginTurnRequest.Builder request =
        BeginTurnRequest.newBuilder()
            .setEvent(event)
            .setHolder(holderName)
            .setRequestId(newRequestId())
            .setClaimTtl(Durations.of(ttl))
            .setLeaseTtl(Durations.of(ttl))
            .setGrace(Durations.of(grace()))
            .setEpicId(epic)
            .setMaxAttempts(maxAttempts)
            .putAllLabels(labels)
            .setPayloadDigest(delivery.digest());
    SessionKey session = delivery.sessionKey(sessionConsumer(event.getConsumer()));
    if (session != null) {
      request.setSession(session);
    }
    return request;
  }

  HoldSessionLeaseRequest.Builder holdRequest(Session session, String holderName) {
    return HoldSessionLeaseRequest.newBuilder()
        .setSession(session.key(sessionConsumer(consumer)))
        .setHolder(holderName)
        .setRequestId(newRequestId())
        .setTtl(Durations.of(ttl))
        .setEpicId(epic)
        .putAllLabels(labels);
  }

  MarkProcessedRequest markRequest(Delivery delivery) {
    MarkProcessedRequest.Builder request =
        MarkProcessedRequest.newBuilder()
            .setEvent(delivery.eventKey(consumer))
            .setRequestId(newRequestId())
            .setPayloadDigest(delivery.digest());
    Duration lasts = delivery.ttl();
    if (lasts != null) {
      request.setTtl(Durations.of(lasts));
    }
    return request.build();
  }

  void queued(LeaseQueued queued) {
    hooks.onQueued(queued.getPosition());
  }
}
