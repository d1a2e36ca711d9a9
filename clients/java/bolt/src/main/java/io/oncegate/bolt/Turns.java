package io.oncegate.bolt;

import com.slack.api.bolt.context.Context;
import io.oncegate.Turn;
import java.util.Collections;
import java.util.Map;
import java.util.UUID;
import java.util.WeakHashMap;
import org.jspecify.annotations.Nullable;

/** The turn of a handler. */
public final class Turns {
  private static final String KEY = "oncegate.turn";

  /**
   * By the very text that the context has: an entry lasts as long as its context. Contexts themselves cannot be keys,
   * because they are compared by their fields, which change.
   */
  private static final Map<String, Turn> TURNS = Collections.synchronizedMap(new WeakHashMap<>());

  private Turns() {}

  /** The turn in which a handler of a {@link GuardedApp} runs; null in a handler that is not guarded. */
  public static @Nullable Turn of(Context context) {
    String key = context.getAdditionalValues().get(KEY);
    return key == null ? null : TURNS.get(key);
  }

  static void put(Context context, Turn turn) {
    String key = UUID.randomUUID().toString();
    TURNS.put(key, turn);
    context.getAdditionalValues().put(KEY, key);
  }
}
