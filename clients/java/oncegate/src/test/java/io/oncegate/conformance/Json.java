package io.oncegate.conformance;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.ToNumberPolicy;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/** Values of JSON: maps, lists, texts, numbers, booleans and null. */
final class Json {
  static final Gson GSON =
      new GsonBuilder()
          .disableHtmlEscaping()
          .serializeNulls()
          .setObjectToNumberStrategy(ToNumberPolicy.LONG_OR_DOUBLE)
          .create();

  private Json() {}

  static @Nullable Object parse(String text) {
    return GSON.fromJson(text, Object.class);
  }

  static Map<String, Object> parseObject(String text) {
    return object(parse(text));
  }

  @SuppressWarnings("unchecked")
  static Map<String, Object> object(@Nullable Object value) {
    return (Map<String, Object>) value;
  }

  @SuppressWarnings("unchecked")
  static List<Object> list(@Nullable Object value) {
    return value == null ? List.of() : (List<Object>) value;
  }

  /** A map of names and values, in turn. Values may be null. */
  static Map<String, Object> of(@Nullable Object... namesAndValues) {
    Map<String, Object> map = new LinkedHashMap<>();
    for (int i = 0; i < namesAndValues.length; i += 2) {
      map.put((String) namesAndValues[i], namesAndValues[i + 1]);
    }
    return map;
  }

  static String shown(@Nullable Object value) {
    String text = GSON.toJson(value);
    return text.substring(0, Math.min(text.length(), 400));
  }

  static int number(@Nullable Object value) {
    return value instanceof Number number ? Math.toIntExact(number.longValue()) : 0;
  }

  /** A value that a step writes: JSON, a repeated text, or raw bytes. */
  static @Nullable Object read(@Nullable Object written) {
    if (written instanceof List<?> items) {
      List<Object> values = new ArrayList<>();
      items.forEach(item -> values.add(read(item)));
      return values;
    }
    if (!(written instanceof Map)) {
      return written;
    }
    Map<String, Object> object = object(written);
    if (object.get("$repeat") instanceof List<?> repeat) {
      return ((String) repeat.get(0)).repeat(number(repeat.get(1)));
    }
    if (object.get("$hex") instanceof String hex) {
      return HexFormat.of().parseHex(hex);
    }
    Map<String, Object> values = new LinkedHashMap<>();
    object.forEach((name, item) -> values.put(name, read(item)));
    return values;
  }

  /** A value as a step writes it. */
  static @Nullable Object write(@Nullable Object value) {
    return value instanceof byte[] bytes ? of("$hex", HexFormat.of().formatHex(bytes)) : value;
  }

  static String text(@Nullable Object written) {
    return read(written) instanceof String text ? text : "";
  }

  static byte[] encoded(@Nullable Object value) {
    return GSON.toJson(value).getBytes(StandardCharsets.UTF_8);
  }
}
