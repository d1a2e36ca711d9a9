package io.oncegate;

import io.oncegate.v1.SessionKey;
import io.oncegate.v1.ThreadKey;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/** A conversation of a tenant: by an id of the caller's, or by a channel and a thread. */
public final class Session {
  private final String team;
  private final String id;
  private final @Nullable String channel;

  private Session(String team, String id, @Nullable String channel) {
    this.team = team;
    this.id = id;
    this.channel = channel;
  }

  /** A conversation by its id. */
  public static Session of(String team, String id) {
    return new Session(team, id, null);
  }

  /** A channel's thread, by the timestamp or id of its first message. */
  public static Session thread(String team, String channel, String ts) {
    return new Session(team, ts, channel);
  }

  /** The tenant. */
  public String team() {
    return team;
  }

  /** The session's canonical id: for a thread, of tenant, channel and thread. */
  public String canonicalId() {
    return channel == null ? id : team + ":" + channel + ":" + id;
  }

  SessionKey key(String consumer) {
    SessionKey.Builder key = SessionKey.newBuilder().setTeamId(team).setConsumer(consumer);
    if (channel != null) {
      key.setThread(ThreadKey.newBuilder().setChannelId(channel).setThreadTs(id));
    } else {
      key.setSessionId(id);
    }
    return key.build();
  }

  @Override
  public boolean equals(@Nullable Object other) {
    if (!(other instanceof Session)) {
      return false;
    }
    Session session = (Session) other;
    return team.equals(session.team) && id.equals(session.id) && Objects.equals(channel, session.channel);
  }

  @Override
  public int hashCode() {
    return Objects.hash(team, id, channel);
  }

  @Override
  public String toString() {
    return channel == null ? team + ":" + id : canonicalId();
  }
}
