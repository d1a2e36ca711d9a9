package io.oncegate;

import java.nio.file.Path;
import java.util.function.Function;
import org.jspecify.annotations.Nullable;

/**
 * Where the server is, and how a gate proves who it is. The settings are read once, their files again and again, so
 * that what they hold can be exchanged while the process runs.
 */
final class Settings {
  private static final int MAX_TOKEN = 8 * 1024;

  final Address address;
  final @Nullable String serverName;

  /** A proxy would carry the token to another host. */
  final boolean avoidsProxy;

  private final @Nullable Rotation tls;
  private final @Nullable WatchedFile tokenFile;
  private final Outage tokenOutage;
  private @Nullable String token; // guarded by this

  /** What the author has set; the environment has the rest. Null is unset. */
  static final class Given {
    @Nullable String server;
    @Nullable Path tlsCa;
    @Nullable Path tlsCert;
    @Nullable Path tlsKey;
    @Nullable String tlsServerName;
    @Nullable String token;
    @Nullable Path tokenFile;
    boolean insecure;
    Function<String, @Nullable String> environment = System::getenv;

    /** What the option says, else the environment; null: neither. An empty option is a mistake. */
    private @Nullable String read(String option, @Nullable Object given, String variable) {
      if (given == null) {
        String value = environment.apply(variable);
        return value == null || value.isEmpty() ? null : value;
      }
      if (given.toString().isEmpty()) {
        throw new MisconfiguredException(option, "it is empty; set it, or leave it out");
      }
      return given.toString();
    }

    /** A setting of TLS. One without effect is a mistake, also one of the environment of a whole pod. */
    private @Nullable String readTls(Address address, String option, @Nullable Object given, String variable) {
      String value = read(option, given, variable);
      if (value != null && !address.tls) {
        throw new MisconfiguredException(
            option,
            (given == null ? variable : "the option")
                + " needs TLS, and the server "
                + address.name
                + " has none; use https://HOST:PORT");
      }
      return value;
    }
  }

  Settings(Given given, System.Logger log) {
    address = Address.parse(given.read("server", given.server, "ONCEGATE_SERVER"));
    String ca = given.readTls(address, "tlsCa", given.tlsCa, "ONCEGATE_TLS_CA");
    String cert = given.readTls(address, "tlsCert", given.tlsCert, "ONCEGATE_CLIENT_CERT");
    String key = given.readTls(address, "tlsCert", given.tlsKey, "ONCEGATE_CLIENT_KEY");
    if ((given.tlsCert == null) != (given.tlsKey == null)) {
      throw new MisconfiguredException("tlsCert", "a client certificate needs both its certificate and its key");
    }
    if ((cert == null) != (key == null)) {
      throw new MisconfiguredException("tlsCert", "a client certificate needs both its certificate and its key");
    }
    serverName = given.readTls(address, "tlsServerName", given.tlsServerName, "ONCEGATE_TLS_SERVER_NAME");
    tls = address.tls ? new Rotation(log, file("tlsCa", ca), file("tlsCert", cert), file("tlsCert", key)) : null;
    if (given.token != null) {
      if (given.tokenFile != null) {
        throw new MisconfiguredException("token", "set either token or tokenFile");
      }
      given.read("token", given.token, "");
      token = checkedToken("token", given.token.strip());
      tokenFile = null;
    } else {
      tokenFile = file("tokenFile", given.read("tokenFile", given.tokenFile, "ONCEGATE_TOKEN_FILE"));
    }
    tokenOutage = new Outage(log, "the token that was read before stays in use");
    boolean hasToken = token != null || tokenFile != null;
    if (hasToken && !address.tls && !address.isLocal() && !given.insecure) {
      throw new MisconfiguredException(
          "server",
          "a token must not be sent in plaintext to " + address.name + "; use https://, or set insecure");
    }
    avoidsProxy = hasToken && !address.tls && address.isLocal();
  }

  private static @Nullable WatchedFile file(String option, @Nullable String path) {
    return path == null ? null : new WatchedFile(option, path);
  }

  private static String checkedToken(String option, String token) {
    boolean fits = !token.isEmpty() && token.length() <= MAX_TOKEN;
    if (!fits || !token.chars().allMatch(c -> '!' <= c && c <= '~')) {
      throw new MisconfiguredException(option, "this is not one token, of at most 8 KiB");
    }
    return token;
  }

  /** The token for the next call; null: none. While its file cannot be used, the last one stays in use. */
  synchronized @Nullable String currentToken() {
    if (tokenFile == null) {
      return token;
    }
    try {
      token = checkedToken("tokenFile", tokenFile.readText());
      tokenOutage.over();
    } catch (MisconfiguredException e) {
      if (token == null) {
        throw e;
      }
      tokenOutage.warn(e);
    }
    return token;
  }

  /** For the next call or stream. {@code atOnce}: after a look at the files of the certificates. */
  Credentials credentials(boolean atOnce) {
    String currentToken = currentToken();
    return new Credentials(this, currentToken, tls == null ? null : tls.current(atOnce));
  }

  /** The server may not accept the certificates any more: look at their files sooner. */
  void lookSoon() {
    if (tls != null) {
      tls.lookSoon();
    }
  }
}
