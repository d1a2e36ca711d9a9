package io.oncegate;

import java.io.ByteArrayOutputStream;
import java.security.GeneralSecurityException;
import java.security.InvalidKeyException;
import java.security.KeyFactory;
import java.security.PrivateKey;
import java.security.spec.PKCS8EncodedKeySpec;
import java.util.Arrays;
import java.util.Base64;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Private keys in PEM: PKCS #8, and PKCS #1 and SEC 1, which Java does not read itself. cert-manager and older versions
 * of OpenSSL write those.
 */
final class PrivateKeys {
  private static final Pattern PEM =
      Pattern.compile("-----BEGIN ((?:RSA |EC )?PRIVATE KEY)-----([^-]*)-----END \\1-----");
  private static final byte[] RSA = {0x30, 13, 6, 9, 0x2a, (byte) 0x86, 0x48, (byte) 0x86, (byte) 0xf7, 13, 1, 1, 1, 5, 0};
  private static final byte[] EC = {6, 7, 0x2a, (byte) 0x86, 0x48, (byte) 0xce, 0x3d, 2, 1};
  private static final byte[] VERSION = {2, 1, 0};
  private static final int SEQUENCE = 0x30;
  private static final int OCTETS = 4;
  private static final int CURVE = 0xa0;

  private PrivateKeys() {}

  static PrivateKey read(String pem) throws GeneralSecurityException {
    Matcher found = PEM.matcher(pem);
    if (!found.find()) {
      throw new InvalidKeyException("there is no private key in PEM that is not encrypted");
    }
    byte[] der;
    try {
      der = Base64.getMimeDecoder().decode(found.group(2));
      switch (found.group(1)) {
        case "RSA PRIVATE KEY":
          der = wrapped(RSA, der);
          break;
        case "EC PRIVATE KEY":
          der = wrapped(element(SEQUENCE, EC, curveOf(der)), der);
          break;
        default:
          break;
      }
    } catch (IllegalArgumentException | IndexOutOfBoundsException e) {
      throw new InvalidKeyException("the private key is damaged");
    }
    for (String kind : new String[] {"EC", "RSA", "Ed25519", "Ed448"}) {
      try {
        return KeyFactory.getInstance(kind).generatePrivate(new PKCS8EncodedKeySpec(der));
      } catch (GeneralSecurityException e) {
        // It is one of another kind, or Java does not know this kind.
      }
    }
    throw new InvalidKeyException("the private key is damaged, or of an unknown kind");
  }

  /** PKCS #8 of a key of another form. */
  private static byte[] wrapped(byte[] algorithm, byte[] key) {
    return element(SEQUENCE, VERSION, algorithm, element(OCTETS, key));
  }

  /** The name of the curve, in a key of SEC 1: the element with tag 0, after the version and the key itself. */
  private static byte[] curveOf(byte[] der) {
    int at = contentAt(der, 0);
    while ((der[at] & 0xff) != CURVE) {
      at = contentAt(der, at) + lengthAt(der, at);
    }
    int content = contentAt(der, at);
    return Arrays.copyOfRange(der, content, content + lengthAt(der, at));
  }

  private static int contentAt(byte[] der, int at) {
    int first = der[at + 1] & 0xff;
    return at + 2 + (first < 0x80 ? 0 : first & 0x7f);
  }

  private static int lengthAt(byte[] der, int at) {
    int first = der[at + 1] & 0xff;
    if (first < 0x80) {
      return first;
    }
    int length = 0;
    for (int i = 0; i < (first & 0x7f); i++) {
      length = (length << 8) | (der[at + 2 + i] & 0xff);
    }
    return length;
  }

  private static byte[] element(int tag, byte[]... parts) {
    ByteArrayOutputStream content = new ByteArrayOutputStream();
    for (byte[] part : parts) {
      content.writeBytes(part);
    }
    int length = content.size();
    ByteArrayOutputStream written = new ByteArrayOutputStream();
    written.write(tag);
    if (length < 0x80) {
      written.write(length);
    } else if (length < 0x100) {
      written.write(0x81);
      written.write(length);
    } else {
      written.write(0x82);
      written.write(length >> 8);
      written.write(length & 0xff);
    }
    written.writeBytes(content.toByteArray());
    return written.toByteArray();
  }
}
