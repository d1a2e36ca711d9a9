package io.oncegate;

import io.grpc.Metadata;
import io.grpc.Status.Code;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import org.jspecify.annotations.Nullable;

/** What one call or stream proves itself by. */
final class Credentials {
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  private final Settings settings;
  private final @Nullable String token;
  final @Nullable Certificates certificates;

  Credentials(Settings settings, @Nullable String token, @Nullable Certificates certificates) {
    this.settings = settings;
    this.token = token;
    this.certificates = certificates;
  }

  Metadata headers() {
    Metadata headers = new Metadata();
    if (token != null) {
      headers.put(AUTHORIZATION, "Bearer " + token);
    }
    return headers;
  }

  /**
   * Says what a failure means. UNAUTHENTICATED is final only with the newest token and client certificate: with older
   * ones the call is worth another try.
   */
  Failure judge(Failure failure) {
    if (failure.reason.isEmpty() && (failure.code == Code.UNAVAILABLE || failure.code == Code.DEADLINE_EXCEEDED)) {
      settings.lookSoon(); // the server may not accept the old ones any more
    }
    if (failure.code != Code.UNAUTHENTICATED) {
      return failure;
    }
    Credentials newest;
    try {
      newest = settings.credentials(true);
    } catch (MisconfiguredException e) {
      return failure;
    }
    return newest.hasIdentityOf(this) ? failure : failure.withNewerIdentity();
  }

  private boolean hasIdentityOf(Credentials other) {
    return MessageDigest.isEqual(bytes(token), bytes(other.token))
        && (certificates == null
            ? other.certificates == null
            : other.certificates != null && certificates.hasClientOf(other.certificates));
  }

  private static byte[] bytes(@Nullable String token) {
    return token == null ? new byte[0] : token.getBytes(StandardCharsets.US_ASCII);
  }
}
