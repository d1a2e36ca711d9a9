package io.oncegate;

import io.grpc.netty.shaded.io.grpc.netty.GrpcSslContexts;
import io.grpc.netty.shaded.io.netty.handler.ssl.SslContext;
import io.grpc.netty.shaded.io.netty.handler.ssl.SslContextBuilder;
import java.io.ByteArrayInputStream;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.Principal;
import java.security.PrivateKey;
import java.security.Signature;
import java.security.cert.CertificateException;
import java.security.cert.CertificateFactory;
import java.security.cert.X509Certificate;
import java.util.Objects;
import javax.net.ssl.SSLEngine;
import javax.net.ssl.SSLException;
import javax.net.ssl.X509ExtendedKeyManager;
import org.jspecify.annotations.Nullable;

/** What the files of the certificates hold. */
final class Certificates {
  private final @Nullable String ca;
  private final @Nullable String cert;
  private final @Nullable String key;
  final SslContext context;

  private Certificates(
      @Nullable String ca, @Nullable String cert, @Nullable String key, SslContext context) {
    this.ca = ca;
    this.cert = cert;
    this.key = key;
    this.context = context;
  }

  /** Reads the files. Returns {@code used} if they hold the same. */
  static Certificates read(
      @Nullable WatchedFile caFile,
      @Nullable WatchedFile certFile,
      @Nullable WatchedFile keyFile,
      @Nullable Certificates used) {
    String ca = caFile == null ? null : caFile.readText();
    String cert = certFile == null ? null : certFile.readText();
    String key = keyFile == null ? null : keyFile.readText();
    if (used != null && used.hasClientOf(cert, key) && Objects.equals(ca, used.ca)) {
      return used;
    }
    SslContextBuilder builder = GrpcSslContexts.forClient();
    if (caFile != null && ca != null) {
      try {
        builder.trustManager(chain(ca));
      } catch (CertificateException e) {
        throw new MisconfiguredException(caFile.option, caFile.path + " holds no certificate in PEM");
      }
    }
    if (certFile != null && keyFile != null && cert != null && key != null) {
      try {
        builder.keyManager(identity(cert, key));
      } catch (GeneralSecurityException e) {
        throw new MisconfiguredException(
            certFile.option,
            certFile.path + " and " + keyFile.path + " are not a certificate and its key: " + e.getMessage());
      }
    }
    try {
      return new Certificates(ca, cert, key, builder.build());
    } catch (SSLException e) {
      throw new MisconfiguredException("tlsCa", "the certificates cannot be used: " + e.getMessage());
    }
  }

  boolean hasClientOf(Certificates other) {
    return hasClientOf(other.cert, other.key);
  }

  private boolean hasClientOf(@Nullable String otherCert, @Nullable String otherKey) {
    return Objects.equals(cert, otherCert) && Objects.equals(key, otherKey);
  }

  private static X509Certificate[] chain(String pem) throws CertificateException {
    X509Certificate[] chain =
        CertificateFactory.getInstance("X.509")
            .generateCertificates(new ByteArrayInputStream(pem.getBytes(StandardCharsets.ISO_8859_1)))
            .toArray(new X509Certificate[0]);
    if (chain.length == 0) {
      throw new CertificateException("there is no certificate in PEM");
    }
    return chain;
  }

  private static Identity identity(String cert, String key) throws GeneralSecurityException {
    X509Certificate[] chain = chain(cert);
    PrivateKey secret = PrivateKeys.read(key);
    if (!belongTogether(chain[0], secret)) {
      throw new GeneralSecurityException("the key is that of another certificate");
    }
    return new Identity(chain, secret);
  }

  private static boolean belongTogether(X509Certificate cert, PrivateKey key) throws GeneralSecurityException {
    String kind = key.getAlgorithm();
    if (!kind.equals(cert.getPublicKey().getAlgorithm())) {
      return false;
    }
    Signature signature =
        Signature.getInstance(kind.equals("RSA") ? "SHA256withRSA" : kind.equals("EC") ? "SHA256withECDSA" : kind);
    byte[] message = {1};
    signature.initSign(key);
    signature.update(message);
    byte[] signed = signature.sign();
    signature.initVerify(cert.getPublicKey());
    signature.update(message);
    return signature.verify(signed);
  }

  /** Sends the certificate also if the server's list of CAs lacks its own: the server then says why it refuses it. */
  private static final class Identity extends X509ExtendedKeyManager {
    private static final String ALIAS = "client";
    private final X509Certificate[] chain;
    private final PrivateKey key;

    Identity(X509Certificate[] chain, PrivateKey key) {
      this.chain = chain;
      this.key = key;
    }

    private @Nullable String forKind(@Nullable String... kinds) {
      for (String kind : kinds) {
        // "EC_EC" and "EC_RSA" are names of older versions of TLS.
        if (kind != null && (kind + "_").startsWith(key.getAlgorithm() + "_")) {
          return ALIAS;
        }
      }
      return key.getAlgorithm().startsWith("Ed") ? ALIAS : null;
    }

    @Override
    public @Nullable String chooseEngineClientAlias(
        String[] kinds, Principal @Nullable [] issuers, @Nullable SSLEngine engine) {
      return forKind(kinds);
    }

    @Override
    public @Nullable String chooseClientAlias(
        String[] kinds, Principal @Nullable [] issuers, @Nullable Socket socket) {
      return forKind(kinds);
    }

    @Override
    public String @Nullable [] getClientAliases(String kind, Principal @Nullable [] issuers) {
      return forKind(kind) == null ? null : new String[] {ALIAS};
    }

    @Override
    public String @Nullable [] getServerAliases(String kind, Principal @Nullable [] issuers) {
      return null;
    }

    @Override
    public @Nullable String chooseServerAlias(
        String kind, Principal @Nullable [] issuers, @Nullable Socket socket) {
      return null;
    }

    @Override
    public X509Certificate[] getCertificateChain(String alias) {
      return chain.clone();
    }

    @Override
    public PrivateKey getPrivateKey(String alias) {
      return key;
    }
  }
}
