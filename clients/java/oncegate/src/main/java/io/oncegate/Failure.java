package io.oncegate;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.Status.Code;
import io.grpc.netty.shaded.io.netty.handler.ssl.NotSslRecordException;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import javax.net.ssl.SSLException;
import org.jspecify.annotations.Nullable;

/** A call that ended with an error, in terms of the contract. Internal: authors of bots see {@link #published}. */
final class Failure extends Exception {
  private static final long serialVersionUID = 1;

  /** In the names of the alerts by which servers refuse a client's certificate, or its lack. */
  private static final List<String> OF_CERTIFICATE =
      List.of("certificate", "unknown ca", "access denied", "decrypt error", "handshake failure");

  final Code code;
  final String problem;
  final String reason;
  final @Nullable String field;
  private final transient Map<String, String> metadata;

  /** When to try again, in nanoseconds; 0: the server does not say. */
  final long retryAfter;

  /** There is a newer token or client certificate: it is worth a try at once. */
  final boolean outdated;

  private Failure(
      Code code,
      String problem,
      String reason,
      @Nullable String field,
      Map<String, String> metadata,
      long retryAfter,
      boolean outdated,
      @Nullable Throwable cause) {
    super(code + ": " + problem, cause, false, false);
    this.code = code;
    this.problem = problem;
    this.reason = reason;
    this.field = field;
    this.metadata = metadata;
    this.retryAfter = retryAfter;
    this.outdated = outdated;
  }

  static Failure of(Code code, String problem, String reason, @Nullable String field) {
    return new Failure(code, problem, reason, field, Map.of(), 0, false, null);
  }

  static Failure unavailable(String problem) {
    return of(Code.UNAVAILABLE, problem, "", null);
  }

  /** The same status with a newer token or client certificate at hand. */
  Failure withNewerIdentity() {
    return new Failure(
        Code.UNAVAILABLE,
        "the token or client certificate was replaced",
        "",
        null,
        Map.of(),
        0,
        true,
        getCause());
  }

  /** Reads a status and its details. */
  static Failure read(Status status, Metadata trailers) {
    String reason = "";
    String field = null;
    Map<String, String> metadata = Map.of();
    long retryAfter = 0;
    try {
      for (Any detail : StatusProto.fromStatusAndTrailers(status, trailers).getDetailsList()) {
        if (detail.is(ErrorInfo.class)) {
          ErrorInfo info = detail.unpack(ErrorInfo.class);
          if (info.getDomain().equals("oncegate")) {
            reason = info.getReason();
            metadata = info.getMetadataMap();
          }
        } else if (detail.is(BadRequest.class)) {
          BadRequest request = detail.unpack(BadRequest.class);
          if (request.getFieldViolationsCount() > 0) {
            field = request.getFieldViolations(0).getField();
          }
        } else if (detail.is(RetryInfo.class)) {
          retryAfter = Durations.nanos(detail.unpack(RetryInfo.class).getRetryDelay());
        }
      }
    } catch (InvalidProtocolBufferException | RuntimeException e) {
      // Details that this library cannot read, or that are those of another status, say nothing.
    }
    String problem = status.getDescription() == null ? status.getCode().name() : firstLine(status.getDescription());
    if (status.getCode() == Code.UNAVAILABLE) {
      problem = explained(problem, status.getCause());
    }
    return new Failure(
        status.getCode(), problem, reason, field, metadata, retryAfter, false, status.asRuntimeException(trailers));
  }

  /** gRPC adds lines about its pipeline. */
  private static String firstLine(String text) {
    int end = text.indexOf('\n');
    return end < 0 ? text : text.substring(0, end);
  }

  /** Adds what TLS and the network say. */
  private static String explained(String problem, @Nullable Throwable cause) {
    Throwable deepest = cause;
    boolean isTls = false;
    String alert = null;
    while (deepest != null) {
      isTls |= deepest instanceof SSLException;
      String said = String.valueOf(deepest.getMessage());
      if (deepest instanceof SSLException && (said.contains("ALERT") || said.contains("alert"))) {
        alert = said;
      }
      if (deepest.getCause() == null || deepest.getCause() == deepest) {
        break;
      }
      deepest = deepest.getCause();
    }
    if (deepest == null) {
      return problem;
    }
    String said = firstLine(String.valueOf(deepest.getMessage()));
    if (deepest instanceof NotSslRecordException) {
      return "it speaks no TLS at this port";
    }
    if (alert != null && !isOfCertificate(alert)) {
      return "the TLS handshake failed (" + firstLine(alert) + ")";
    }
    if (alert != null) {
      return "it does not accept the client certificate of tlsCert, or needs one (" + firstLine(alert) + ")";
    }
    if (isTls) {
      return "its certificate is not from a CA of tlsCa, not valid for its name, or expired (" + said + ")";
    }
    return said.equals(problem) ? problem : problem + ": " + said;
  }

  /** Whether an alert of TLS says that the server does not accept a certificate. */
  private static boolean isOfCertificate(String alert) {
    String text = alert.toLowerCase(Locale.ROOT).replace('_', ' ');
    return OF_CERTIFICATE.stream().anyMatch(text::contains);
  }

  /** The loss that the server reports: the turn or lease has ended; null if nothing is lost. */
  @Nullable LostReason lost() {
    switch (reason) {
      case "CLAIM_LOST":
        return LostReason.CLAIM_LOST;
      case "LEASE_LOST":
        return LostReason.LEASE_LOST;
      case "MAX_HOLD":
        return LostReason.MAX_HOLD;
      default:
        return null;
    }
  }

  /** The server does not accept the caller. */
  private boolean denied() {
    return code == Code.UNAUTHENTICATED || code == Code.PERMISSION_DENIED;
  }

  /** Why something that is held is lost by this; null if nothing is. */
  @Nullable LostReason loss() {
    LostReason lost = lost();
    return lost == null && denied() ? LostReason.DENIED : lost;
  }

  /** The same request may succeed later. An error without a reason is the transport's. */
  boolean retryable() {
    switch (code) {
      case RESOURCE_EXHAUSTED:
        return retryAfter > 0;
      case UNAVAILABLE:
      case DEADLINE_EXCEEDED:
      case CANCELLED:
        return true;
      case INTERNAL:
      case UNKNOWN:
      case ABORTED:
        return reason.isEmpty();
      default:
        return reason.equals("STREAM_REPLACED");
    }
  }

  /** What the author of a bot sees. */
  OncegateException published() {
    Throwable cause = getCause();
    if (code == Code.RESOURCE_EXHAUSTED && retryAfter > 0) {
      return new OverloadedException(
          "the server is overloaded: " + problem + "; retry in " + TimeUnit.NANOSECONDS.toMillis(retryAfter) + " ms",
          Duration.ofNanos(retryAfter),
          cause);
    }
    if (reason.equals("EPIC_MISMATCH")) {
      return new EpicMismatchException(metadata.getOrDefault("epic_id", ""), cause);
    }
    if (reason.equals("PAYLOAD_MISMATCH")) {
      return new PayloadMismatchException(cause);
    }
    if (denied()) {
      String why = reason.isEmpty() ? code.name() : reason;
      return new DeniedException(
          "the server denies the call ("
              + why
              + "): "
              + problem
              + "; check the gate's token or certificate, and its role and teams in the server's --auth file",
          why,
          cause);
    }
    if (retryable()) {
      return new UnavailableException(
          "the server is unavailable: " + problem + "; refuse the delivery or retry later",
          retryAfter == 0 ? Duration.ofSeconds(1) : Duration.ofNanos(retryAfter),
          cause);
    }
    switch (code) {
      case INVALID_ARGUMENT:
      case OUT_OF_RANGE:
      case RESOURCE_EXHAUSTED:
      case NOT_FOUND:
        return new InvalidException(problem, field, cause);
      default:
        return new InternalException(code + ": " + problem, cause);
    }
  }
}
