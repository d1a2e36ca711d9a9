package io.oncegate.conformance;

import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/** Matches results, and keeps the values that a scenario stores on the way. */
final class Expectations {
  private Map<String, Object> stored = new HashMap<>();

  /** Throws the first difference. A result that differs is not stored. */
  void match(@Nullable Object expected, @Nullable Object result) throws Mismatch {
    Map<String, Object> now = new HashMap<>(stored);
    match(expected, result, "result", now);
    stored = now;
  }

  private static void match(
      @Nullable Object expected, @Nullable Object result, String at, Map<String, Object> stored) throws Mismatch {
    if (expected instanceof List<?> items) {
      if (!(result instanceof List<?> found) || found.size() != items.size()) {
        throw differs(at, expected, result);
      }
      for (int i = 0; i < items.size(); i++) {
        match(items.get(i), found.get(i), at + "[" + i + "]", stored);
      }
      return;
    }
    if (expected instanceof Map) {
      Map<String, Object> wanted = Json.object(expected);
      for (Map.Entry<String, Object> rule : wanted.entrySet()) {
        if (rule.getKey().startsWith("$")) {
          if (!follows(rule.getKey(), rule.getValue(), result, stored)) {
            throw differs(at, expected, result);
          }
          return;
        }
      }
      if (!(result instanceof Map)) {
        throw differs(at, expected, result);
      }
      Map<String, Object> found = Json.object(result);
      for (Map.Entry<String, Object> item : wanted.entrySet()) {
        String place = at + "." + item.getKey();
        boolean isPresent = found.containsKey(item.getKey());
        boolean isUnwanted = Json.of("$absent", true).equals(item.getValue());
        if (isPresent == isUnwanted) {
          throw differs(place, item.getValue(), found.get(item.getKey()));
        }
        if (isPresent) {
          match(item.getValue(), found.get(item.getKey()), place, stored);
        }
      }
      return;
    }
    if (!same(expected, result)) {
      throw differs(at, expected, result);
    }
  }

  private static Mismatch differs(String at, @Nullable Object expected, @Nullable Object result) {
    return new Mismatch(at + " is " + Json.shown(result) + ", expected " + Json.shown(expected));
  }

  /** JSON has one kind of number. */
  static boolean same(@Nullable Object one, @Nullable Object other) {
    if (one instanceof Number first && other instanceof Number second) {
      return first.doubleValue() == second.doubleValue();
    }
    if (one instanceof List<?> first && other instanceof List<?> second) {
      if (first.size() != second.size()) {
        return false;
      }
      for (int i = 0; i < first.size(); i++) {
        if (!same(first.get(i), second.get(i))) {
          return false;
        }
      }
      return true;
    }
    if (one instanceof Map<?, ?> first && other instanceof Map<?, ?> second) {
      return first.keySet().equals(second.keySet())
          && first.keySet().stream().allMatch(key -> same(first.get(key), second.get(key)));
    }
    return one == null ? other == null : one.equals(other);
  }

  /** Whether a result is what stands in the place of a value. */
  private static boolean follows(
      String rule, @Nullable Object argument, @Nullable Object result, Map<String, Object> stored) {
    switch (rule) {
      case "$set":
        stored.put((String) argument, result);
        return result != null;
      case "$get":
        return stored.containsKey(argument) && same(stored.get(argument), result);
      case "$gt":
        return stored.get(argument) instanceof Number low
            && result instanceof Number number
            && number.doubleValue() > low.doubleValue();
      case "$between":
        List<Object> limits = Json.list(argument);
        return result instanceof Number number
            && ((Number) limits.get(0)).doubleValue() <= number.doubleValue()
            && number.doubleValue() <= ((Number) limits.get(1)).doubleValue();
      case "$contains":
        return result instanceof String text && text.contains((String) argument);
      case "$any":
        return result != null;
      case "$string_bytes":
        return result instanceof String text
            && text.getBytes(StandardCharsets.UTF_8).length == Json.number(argument);
      case "$hex":
        return Json.of("$hex", argument).equals(result);
      default:
        return false;
    }
  }
}
