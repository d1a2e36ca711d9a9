package io.oncegate;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.ToNumberPolicy;
import java.lang.reflect.Type;
import java.nio.charset.StandardCharsets;
import org.jspecify.annotations.Nullable;

/** JSON, by Gson, which gRPC needs in any case. */
final class JsonCodec implements Codec {
  static final Codec DEFAULT = new JsonCodec();

  private static final String JSON = "application/json";
  private static final String BYTES = "application/octet-stream";

  private final Gson gson =
      new GsonBuilder()
          .disableHtmlEscaping()
          .serializeNulls()
          .setObjectToNumberStrategy(ToNumberPolicy.LONG_OR_DOUBLE)
          .create();

  private JsonCodec() {}

  @Override
  public Encoded encode(Object value) {
    if (value instanceof byte[]) {
      return new Encoded((byte[]) value, BYTES);
    }
    try {
      return new Encoded(gson.toJson(value).getBytes(StandardCharsets.UTF_8), JSON);
    } catch (RuntimeException e) {
      throw new ResultException("a result of " + value.getClass().getName() + " needs a codec of its own", e);
    }
  }

  @Override
  public @Nullable Object decode(byte[] data, String resultType, Type type) {
    if (resultType.equals(JSON)) {
      try {
        return gson.fromJson(new String(data, StandardCharsets.UTF_8), type);
      } catch (RuntimeException e) {
        throw new ResultException("the result cannot be read as " + type.getTypeName(), e);
      }
    }
    if (type == byte[].class || type == Object.class) {
      return data;
    }
    throw new ResultException(
        "a result of type " + resultType + " cannot be read as " + type.getTypeName(), null);
  }
}
