package io.oncegate.conformance;

import io.oncegate.BusyException;
import io.oncegate.CancelledException;
import io.oncegate.Codec;
import io.oncegate.Delivery;
import io.oncegate.DroppedException;
import io.oncegate.DuplicateException;
import io.oncegate.EpicMismatchException;
import io.oncegate.Gate;
import io.oncegate.GaveUpException;
import io.oncegate.Hold;
import io.oncegate.InProgressException;
import io.oncegate.InternalException;
import io.oncegate.InvalidException;
import io.oncegate.LeaseLostException;
import io.oncegate.LeaseRequest;
import io.oncegate.Outcome;
import io.oncegate.OutcomeUnknownException;
import io.oncegate.OverloadedException;
import io.oncegate.PayloadMismatchException;
import io.oncegate.RejectException;
import io.oncegate.ResultException;
import io.oncegate.Session;
import io.oncegate.Turn;
import io.oncegate.TurnLostException;
import io.oncegate.TurnRequest;
import io.oncegate.Unavailability;
import io.oncegate.UnavailableException;
import java.lang.reflect.Type;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.time.LocalDate;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/** Between the words of a scenario and those of the library's public API. */
final class Mapping {
  private Mapping() {}

  /** An error of the handler's own. */
  static final class OwnError extends Exception {
    private static final long serialVersionUID = 1;

    OwnError(String message) {
      super(message);
    }
  }

  /** Keeps a type that JSON does not know. */
  static final class DateCodec implements Codec {
    @Override
    public Encoded encode(Object value) {
      return new Encoded(value.toString().getBytes(StandardCharsets.UTF_8), "text/x-date");
    }

    @Override
    public Object decode(byte[] data, String resultType, Type type) {
      return LocalDate.parse(new String(data, StandardCharsets.UTF_8));
    }
  }

  static Duration millis(@Nullable Object written) {
    return Duration.ofMillis(Json.number(written));
  }

  static Delivery delivery(@Nullable Object step) {
    Map<String, Object> given = Json.object(step);
    Delivery sent = ofPlatform(given);
    String team = Json.text(given.get("team"));
    if (sent != null) {
      return team.isEmpty() ? sent : sent.team(team);
    }
    Delivery delivery = Delivery.of(team, Json.text(given.get("event")));
    if (given.containsKey("session")) {
      delivery = delivery.session(Json.text(given.get("session")));
    }
    if (given.containsKey("thread")) {
      List<Object> thread = Json.list(given.get("thread"));
      delivery = delivery.thread((String) thread.get(0), (String) thread.get(1));
    }
    if (given.containsKey("aliases")) {
      delivery = delivery.aliases(Json.list(given.get("aliases")).stream().map(Json::text).toList());
    }
    if (given.containsKey("digest")) {
      delivery = delivery.digest(HexFormat.of().parseHex(Json.text(given.get("digest"))));
    }
    if (given.containsKey("ttl_ms")) {
      delivery = delivery.ttl(millis(given.get("ttl_ms")));
    }
    return delivery;
  }

  private static @Nullable Delivery ofPlatform(Map<String, Object> given) {
    for (Map.Entry<String, Object> entry : given.entrySet()) {
      if (!(entry.getValue() instanceof Map)) {
        continue;
      }
      Map<String, Object> sent = Json.object(entry.getValue());
      switch (entry.getKey()) {
        case "slack":
          return Delivery.slack(Json.encoded(sent));
        case "github":
          return Delivery.github(headers(sent), body(sent));
        case "discord":
          return Delivery.discord(body(sent));
        case "telegram":
          return Delivery.telegram("", body(sent));
        case "teams":
          return Delivery.teams(body(sent));
        case "stripe":
          return Delivery.stripe(body(sent));
        case "standard_webhooks":
          return Delivery.standardWebhooks("", headers(sent), body(sent));
        default:
          break;
      }
    }
    return null;
  }

  private static Map<String, String> headers(Map<String, Object> sent) {
    return sent.containsKey("headers") ? texts(sent.get("headers")) : Map.of();
  }

  private static byte[] body(Map<String, Object> sent) {
    return sent.get("body") instanceof String text
        ? text.getBytes(StandardCharsets.UTF_8)
        : Json.encoded(sent.get("body"));
  }

  static Session session(@Nullable Object step) {
    Map<String, Object> given = Json.object(step);
    String team = Json.text(given.get("team"));
    if (given.containsKey("thread")) {
      List<Object> thread = Json.list(given.get("thread"));
      return Session.thread(team, (String) thread.get(0), (String) thread.get(1));
    }
    return Session.of(team, Json.text(given.get("id")));
  }

  private static Map<String, String> texts(@Nullable Object given) {
    Map<String, String> texts = new LinkedHashMap<>();
    Json.object(given).forEach((name, value) -> texts.put(name, (String) value));
    return texts;
  }

  static TurnRequest turn(Gate gate, @Nullable Object delivery, Map<String, Object> step) {
    TurnRequest request = gate.turn(delivery(delivery));
    step.forEach(
        (name, given) -> {
          switch (name) {
            case "wait_ms" -> request.waitFor(millis(given));
            case "ttl_ms" -> request.ttl(millis(given));
            case "patience_ms" -> request.patience(millis(given));
            case "epic" -> request.epic(Json.text(given));
            case "labels" -> request.labels(texts(given));
            case "max_attempts" -> request.maxAttempts(Json.number(given));
            case "on_unavailable" -> request.onUnavailable(unavailability(given));
            default -> {}
          }
        });
    return request;
  }

  static LeaseRequest lease(Gate gate, Map<String, Object> step) {
    LeaseRequest request = gate.lease(session(step.get("session")));
    step.forEach(
        (name, given) -> {
          switch (name) {
            case "wait_ms" -> request.waitFor(millis(given));
            case "ttl_ms" -> request.ttl(millis(given));
            case "patience_ms" -> request.patience(millis(given));
            case "epic" -> request.epic(Json.text(given));
            case "labels" -> request.labels(texts(given));
            default -> {}
          }
        });
    return request;
  }

  private static Unavailability unavailability(@Nullable Object given) {
    return Unavailability.valueOf(((String) given).toUpperCase(Locale.ROOT));
  }

  static Gate.Builder gate(String name, String server, Map<String, Object> options) {
    Gate.Builder gate =
        Gate.builder()
            .server(server)
            .holder(name)
            .consumer(Json.text(options.get("consumer")))
            .ttl(millis(options.get("ttl_ms")))
            .logger(new QuietLogger());
    options.forEach(
        (option, given) -> {
          switch (option) {
            case "grace_ms" -> gate.grace(millis(given));
            case "patience_ms" -> gate.patience(millis(given));
            case "max_attempts" -> gate.maxAttempts(Json.number(given));
            case "on_unavailable" -> gate.onUnavailable(unavailability(given));
            case "share_sessions" -> {
              if (Boolean.TRUE.equals(given)) {
                gate.shareSessions();
              }
            }
            default -> {}
          }
        });
    return gate;
  }

  /** What the body of a handler returns or throws, as its step says. */
  static @Nullable Object bodyOf(Map<String, Object> step) throws OwnError {
    if (step.get("error") instanceof String message) {
      throw new OwnError(message);
    }
    if (step.get("reject") instanceof String detail) {
      throw new RejectException(detail);
    }
    return Json.read(step.get("result"));
  }

  static Object outcome(Outcome<?> outcome) {
    return outcome.match(
        ran -> Json.of("ran", Json.write(ran.value())),
        duplicate ->
            Json.of(
                "duplicate",
                Json.of(
                    "result",
                    Json.write(duplicate.result()),
                    "outcome",
                    duplicate.outcome(),
                    "detail",
                    duplicate.detail())),
        gaveUp -> Json.of("gave_up", Json.of("attempts", gaveUp.attempts(), "detail", gaveUp.detail())),
        inProgress ->
            Json.of(
                "in_progress",
                Json.of(
                    "holder",
                    inProgress.holder(),
                    "attempt",
                    inProgress.attempt(),
                    "retry_after_ms",
                    inProgress.retryAfter().toMillis())),
        busy ->
            Json.of(
                "busy",
                Json.of(
                    "holder",
                    busy.holder(),
                    "queue_length",
                    busy.queueLength(),
                    "retry_after_ms",
                    busy.retryAfter().toMillis())),
        dropped -> Json.of("dropped", Json.of()));
  }

  /** An exception, which may be an expected answer. */
  static Object failed(Throwable problem) {
    if (problem instanceof DuplicateException e) {
      return Json.of(
          "duplicate",
          Json.of("result", Json.write(e.result(Object.class)), "outcome", e.outcome(), "detail", e.detail()));
    } else if (problem instanceof GaveUpException e) {
      return Json.of("gave_up", Json.of("attempts", e.attempts(), "detail", e.detail()));
    } else if (problem instanceof InProgressException e) {
      return Json.of(
          "in_progress",
          Json.of("holder", e.holder(), "attempt", e.attempt(), "retry_after_ms", e.retryAfter().toMillis()));
    } else if (problem instanceof BusyException e) {
      return Json.of(
          "busy",
          Json.of("holder", e.holder(), "queue_length", e.queueLength(), "retry_after_ms", e.retryAfter().toMillis()));
    } else if (problem instanceof DroppedException) {
      return Json.of("dropped", Json.of());
    }
    return Json.of("error", error(problem));
  }

  static Map<String, Object> error(Throwable problem) {
    if (problem instanceof TurnLostException e) {
      return Json.of("kind", "turn_lost", "reason", e.reason().name(), "value", Json.write(e.value()));
    } else if (problem instanceof LeaseLostException e) {
      return Json.of("kind", "lease_lost", "reason", e.reason().name());
    } else if (problem instanceof OutcomeUnknownException e) {
      return Json.of("kind", "outcome_unknown", "value", Json.write(e.value()));
    } else if (problem instanceof UnavailableException e) {
      return Json.of("kind", "unavailable", "retry_after_ms", e.retryAfter().toMillis());
    } else if (problem instanceof OverloadedException e) {
      return Json.of("kind", "overloaded", "retry_after_ms", e.retryAfter().toMillis());
    } else if (problem instanceof EpicMismatchException e) {
      return Json.of("kind", "epic_mismatch", "bound", e.bound());
    } else if (problem instanceof PayloadMismatchException) {
      return Json.of("kind", "payload_mismatch");
    } else if (problem instanceof InvalidException e) {
      return Json.of("kind", "invalid", "field", e.field());
    } else if (problem instanceof InternalException || problem instanceof ResultException) {
      return Json.of("kind", "internal", "message", problem.getMessage());
    } else if (problem instanceof OwnError) {
      return Json.of("kind", "own", "message", problem.getMessage());
    } else if (problem instanceof CancelledException || problem instanceof InterruptedException) {
      return Json.of("kind", "cancelled");
    }
    return Json.of("kind", "unexpected", "message", problem.toString());
  }

  private static @Nullable Object attempt(Hold held) {
    return held instanceof Turn turn ? turn.attempt() : null;
  }

  private static @Nullable Object fence(Hold held) {
    return held.fence() == 0 ? null : held.fence();
  }

  static Object granted(Hold held) {
    return Json.of("granted", Json.of("attempt", attempt(held), "fence", fence(held), "held", held.held()));
  }

  static Object state(Hold held, boolean interrupted) {
    return Json.of(
        "held",
        held.held(),
        "lost",
        held.lostReason() == null ? null : held.lostReason().name(),
        "kept_by",
        held.keptBy(),
        "attempt",
        attempt(held),
        "fence",
        fence(held),
        "waiters",
        held.waiters(),
        "left_ms",
        held.left().toMillis(),
        "interrupted",
        interrupted);
  }

  /** The deliveries of mark_all. */
  static List<Delivery> many(Map<String, Object> step) {
    List<Delivery> deliveries = new ArrayList<>();
    for (int i = 0; i < Json.number(step.get("count")); i++) {
      String event = Json.text(step.get("prefix")) + i;
      if (has(step, "bad", i)) {
        event = "";
      } else if (has(step, "repeat", i)) {
        event = Json.text(step.get("prefix")) + 0;
      }
      List<String> aliases = new ArrayList<>();
      for (int n = 0; n < Json.number(step.get("aliases")); n++) {
        String alias = event + ":" + n + ":";
        aliases.add(alias + "x".repeat(512 - alias.length()));
      }
      deliveries.add(Delivery.of(Json.text(step.get("team")), event).aliases(aliases));
    }
    return deliveries;
  }

  private static boolean has(Map<String, Object> step, String name, int index) {
    return Json.list(step.get(name)).contains((long) index);
  }
}
