package io.oncegate;

import java.lang.reflect.Type;
import org.jspecify.annotations.Nullable;

/** Decides how a handler's result is stored, so that a duplicate gets the same value. */
public interface Codec {
  /** Makes the stored form of a value, which is not null. */
  Encoded encode(Object value);

  /** Makes the value of a stored form. It must be of the type asked for, which may be {@code Object}. */
  @Nullable Object decode(byte[] data, String resultType, Type type);

  /** The default: JSON, by Gson. Bytes are stored as they are. */
  static Codec json() {
    return JsonCodec.DEFAULT;
  }

  /** A stored form. */
  final class Encoded {
    private final byte[] data;
    private final String resultType;

    /** A stored form of at most 64 KiB, and the name of its type. */
    public Encoded(byte[] data, String resultType) {
      this.data = data.clone();
      this.resultType = resultType;
    }

    /** The bytes. */
    public byte[] data() {
      return data.clone();
    }

    /** The name of their type. */
    public String resultType() {
      return resultType;
    }
  }
}
