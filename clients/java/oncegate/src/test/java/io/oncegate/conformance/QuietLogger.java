package io.oncegate.conformance;

import java.util.ResourceBundle;
import org.jspecify.annotations.Nullable;

/** Logs nothing: losses and outages are what scenarios are about. */
public class QuietLogger implements System.Logger {
  @Override
  public String getName() {
    return "quiet";
  }

  @Override
  public boolean isLoggable(Level level) {
    return false;
  }

  @Override
  public void log(Level level, @Nullable ResourceBundle bundle, @Nullable String text, @Nullable Throwable thrown) {}

  @Override
  public void log(Level level, @Nullable ResourceBundle bundle, @Nullable String format, @Nullable Object... params) {}
}
