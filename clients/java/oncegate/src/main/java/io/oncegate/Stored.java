package io.oncegate;

import com.google.protobuf.ByteString;
import java.lang.reflect.Type;
import org.jspecify.annotations.Nullable;

/** A stored result of a turn, and how to read it. */
final class Stored {
  private final ByteString data;
  private final String resultType;
  private final Codec codec;

  Stored(ByteString data, String resultType, Codec codec) {
    this.data = data;
    this.resultType = resultType;
    this.codec = codec;
  }

  /** The value; null if nothing is stored. The caller says which type it has. */
  @SuppressWarnings({"unchecked", "TypeParameterUnusedInFormals"})
  <T> @Nullable T decode(Type type) {
    if (data.isEmpty() && resultType.isEmpty()) {
      return null;
    }
    return (T) codec.decode(data.toByteArray(), resultType, type);
  }
}
