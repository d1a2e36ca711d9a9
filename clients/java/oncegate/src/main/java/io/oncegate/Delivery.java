package io.oncegate;

import com.google.protobuf.ByteString;
import io.oncegate.v1.EventKey;
import io.oncegate.v1.Platform;
import io.oncegate.v1.SessionKey;
import io.oncegate.v1.SessionScope;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Collection;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * One delivery of an event: what names the event and its conversation, and whether its sender redelivers.
 *
 * <p>{@link #slack}, {@link #github} and so on make one of a platform's payload; {@link #of} makes one by hand. The
 * other methods return a copy.
 */
public final class Delivery {
  private static final Duration DAY = Duration.ofDays(1);
  private static final Duration WEEK = Duration.ofDays(7);

  private String team = "";
  private String event = "";
  private @Nullable String sessionId;
  private @Nullable String channel;
  private Scope scope = Scope.THREAD;
  private List<String> aliases = List.of();
  private ByteString digest = ByteString.EMPTY;
  private @Nullable Duration ttl;
  private boolean sentOnce;
  private boolean eachUse;
  private @Nullable String consumer;
  private @Nullable Payload payload;

  private Delivery() {}

  private Delivery(Delivery other) {
    team = other.team;
    event = other.event;
    sessionId = other.sessionId;
    channel = other.channel;
    scope = other.scope;
    aliases = other.aliases;
    digest = other.digest;
    ttl = other.ttl;
    sentOnce = other.sentOnce;
    eachUse = other.eachUse;
    consumer = other.consumer;
    payload = other.payload;
  }

  /** An event of a tenant, by its id. */
  public static Delivery of(String team, String event) {
    Delivery delivery = new Delivery();
    delivery.team = team;
    delivery.event = event;
    return delivery;
  }

  /**
   * A delivery of Slack: the body of a request, or a Socket Mode frame or its payload. Verify the signature first. Slack
   * redelivers events that were not acknowledged, but not interactions and commands.
   */
  public static Delivery slack(byte[] body) {
    Delivery delivery = from(Platform.PLATFORM_SLACK, Map.of(), body);
    delivery.sentOnce = !Payload.isSlackEvent(body);
    return delivery;
  }

  /** The same, of a text. */
  public static Delivery slack(String body) {
    return slack(body.getBytes(StandardCharsets.UTF_8));
  }

  /**
   * A delivery of a GitHub webhook. Verify {@code X-Hub-Signature-256} first. All webhooks of a repository get the same
   * delivery id: with several of them, set the gate's consumer. GitHub redelivers only on request, so the event stays
   * processed for 7 days.
   */
  public static Delivery github(Map<String, String> headers, byte[] body) {
    Delivery delivery = from(Platform.PLATFORM_GITHUB, pick(headers, "X-GitHub-Delivery"), body);
    delivery.ttl = WEEK;
    delivery.sentOnce = true;
    return delivery;
  }

  /** An interaction or a gateway event, as Discord sent it. Discord does not redeliver. */
  public static Delivery discord(byte[] body) {
    Delivery delivery = from(Platform.PLATFORM_DISCORD, Map.of(), body);
    delivery.sentOnce = true;
    return delivery;
  }

  /**
   * An update of a Telegram bot. {@code team} is the bot: an update does not name it. The event stays processed for 2
   * days, because update ids may start again after a week.
   */
  public static Delivery telegram(String team, byte[] body) {
    Delivery delivery = from(Platform.PLATFORM_TELEGRAM, Map.of(), body);
    delivery.team = team;
    delivery.ttl = DAY.multipliedBy(2);
    return delivery;
  }

  /** An activity of Microsoft Teams. Verify the token first. */
  public static Delivery teams(byte[] body) {
    return from(Platform.PLATFORM_TEAMS, Map.of(), body);
  }

  /**
   * An event of Stripe. Verify {@code Stripe-Signature} first. Set {@link #team} for your own account's events. Stripe
   * retries for 3 days, so the event stays processed for 7 days.
   */
  public static Delivery stripe(byte[] body) {
    Delivery delivery = from(Platform.PLATFORM_STRIPE, Map.of(), body);
    delivery.ttl = WEEK;
    return delivery;
  }

  /**
   * A request of a sender that follows https://www.standardwebhooks.com. Verify the signature first. The request names
   * no tenant, and there is no conversation. The event stays processed for 7 days.
   */
  public static Delivery standardWebhooks(String team, Map<String, String> headers, byte[] body) {
    Delivery delivery = from(Platform.PLATFORM_STANDARD_WEBHOOKS, pick(headers, "webhook-id"), body);
    delivery.team = team;
    delivery.ttl = WEEK;
    return delivery;
  }

  private static Delivery from(Platform platform, Map<String, String> headers, byte[] body) {
    Delivery delivery = new Delivery();
    delivery.payload = new Payload(platform, headers, body);
    return delivery;
  }

  /** Only the header of this name. */
  private static Map<String, String> pick(Map<String, String> headers, String name) {
    for (Map.Entry<String, String> header : headers.entrySet()) {
      if (name.equalsIgnoreCase(header.getKey()) && !header.getValue().isEmpty()) {
        return Map.of(name, header.getValue());
      }
    }
    return Map.of();
  }

  /** Sets the tenant. A payload may name it. */
  public Delivery team(String team) {
    Delivery copy = new Delivery(this);
    copy.team = team;
    return copy;
  }

  /** Sets the conversation, by its id. Without one, only the event is claimed; a payload names its own. */
  public Delivery session(String id) {
    Delivery copy = new Delivery(this);
    copy.sessionId = id;
    copy.channel = null;
    return copy;
  }

  /** Sets the conversation: a channel's thread, by the timestamp or id of its first message. */
  public Delivery thread(String channel, String ts) {
    Delivery copy = session(ts);
    copy.channel = channel;
    return copy;
  }

  /** Sets how much of a payload's conversation is one session. Default {@link Scope#THREAD}. */
  public Delivery scope(Scope scope) {
    Delivery copy = new Delivery(this);
    copy.scope = scope;
    return copy;
  }

  /** Sets other names of the same event, at most 8. */
  public Delivery aliases(Collection<String> aliases) {
    Delivery copy = new Delivery(this);
    copy.aliases = List.copyOf(aliases);
    return copy;
  }

  /** Sets a digest of the payload, at most 32 bytes: another one for the same name is a {@link PayloadMismatchException}. */
  public Delivery digest(byte[] digest) {
    Delivery copy = new Delivery(this);
    copy.digest = ByteString.copyFrom(digest);
    return copy;
  }

  /** Sets how long the event stays processed. 1 s to 30 days; default 24 h. */
  public Delivery ttl(Duration ttl) {
    Delivery copy = new Delivery(this);
    copy.ttl = ttl;
    return copy;
  }

  /** Sets whether the sender does not deliver again what was refused. */
  public Delivery sentOnce(boolean sentOnce) {
    Delivery copy = new Delivery(this);
    copy.sentOnce = sentOnce;
    return copy;
  }

  /**
   * Makes every use of a Slack interaction an event of its own. Otherwise a second click of the same user on the same
   * button is the same event.
   */
  public Delivery eachUse() {
    Delivery copy = new Delivery(this);
    copy.eachUse = true;
    return copy;
  }

  /** Sets the application that handles the event, instead of the gate's consumer. */
  public Delivery consumer(String consumer) {
    Delivery copy = new Delivery(this);
    copy.consumer = consumer;
    return copy;
  }

  /** The event alone. */
  Delivery withoutSession() {
    Delivery copy = new Delivery(this);
    copy.sessionId = null;
    copy.channel = null;
    copy.scope = Scope.EVENT;
    return copy;
  }

  /** Whether the sender does not deliver again what was refused, for middleware. */
  public boolean isSentOnce() {
    return sentOnce;
  }

  @Nullable Duration ttl() {
    return ttl;
  }

  ByteString digest() {
    return digest;
  }

  /** The platform, for logs. */
  String kind() {
    return payload == null ? "delivery" : payload.platform.name().substring("PLATFORM_".length());
  }

  EventKey eventKey(String gateConsumer) {
    EventKey.Builder key =
        EventKey.newBuilder()
            .setTeamId(team)
            .addAllAliases(aliases)
            .setConsumer(consumer != null ? consumer : gateConsumer)
            .setEachUse(eachUse);
    if (payload == null) {
      key.setEventId(event);
    } else if (payload.platform == Platform.PLATFORM_SLACK) {
      key.setSlackPayload(payload.body);
    } else {
      key.setDelivery(
          io.oncegate.v1.Delivery.newBuilder()
              .setPlatform(payload.platform)
              .putAllHeaders(payload.headers)
              .setBody(payload.body));
    }
    return key.build();
  }

  /** The conversation in a request that also has the event; null: none. */
  @Nullable SessionKey sessionKey(String sessionConsumer) {
    if (sessionId != null && (channel != null || !sessionId.isEmpty())) {
      Session session = channel == null ? Session.of(team, sessionId) : Session.thread(team, channel, sessionId);
      return session.key(sessionConsumer);
    }
    if (payload == null || scope == Scope.EVENT) {
      return null;
    }
    SessionKey.Builder key =
        SessionKey.newBuilder()
            .setConsumer(sessionConsumer)
            .setScope(SessionScope.valueOf("SESSION_SCOPE_" + scope.name()));
    // The event in the same request has the payload: it is sent once.
    if (payload.platform == Platform.PLATFORM_SLACK) {
      key.setSlackPayload(ByteString.EMPTY);
    } else {
      key.setDelivery(io.oncegate.v1.Delivery.getDefaultInstance());
    }
    return key.build();
  }

  @Override
  public String toString() {
    return kind().toLowerCase(Locale.ROOT) + (event.isEmpty() ? "" : " " + team + ":" + event);
  }
}
