package io.oncegate.conformance;

import java.util.Map;
import org.jspecify.annotations.Nullable;

/** Does the steps of one gate. */
interface Client extends AutoCloseable {
  @Nullable Object perform(Map<String, Object> step) throws Exception;

  @Override
  void close() throws Exception;
}
