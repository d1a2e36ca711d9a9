package io.oncegate;

import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.util.ResourceBundle;
import org.jspecify.annotations.Nullable;

/** Calls what the author has set so that its exceptions change nothing: neither an outcome nor a loss. */
final class Guarded {
  private Guarded() {}

  static Logger logger(Logger log) {
    return new QuietLogger(log);
  }

  static Hooks hooks(Hooks hooks, Logger log) {
    return new QuietHooks(hooks, log);
  }

  private static final class QuietLogger implements Logger {
    private final Logger log;

    QuietLogger(Logger log) {
      this.log = log;
    }

    @Override
    public String getName() {
      return log.getName();
    }

    @Override
    public boolean isLoggable(Level level) {
      try {
        return log.isLoggable(level);
      } catch (RuntimeException | Error e) {
        return false;
      }
    }

    @Override
    public void log(Level level, @Nullable ResourceBundle bundle, @Nullable String text, @Nullable Throwable thrown) {
      try {
        log.log(level, bundle, text, thrown);
      } catch (RuntimeException | Error e) {
        // There is no other place to report it.
      }
    }

    @Override
    public void log(
        Level level, @Nullable ResourceBundle bundle, @Nullable String format, @Nullable Object... params) {
      try {
        log.log(level, bundle, format, params);
      } catch (RuntimeException | Error e) {
        // There is no other place to report it.
      }
    }
  }

  private static final class QuietHooks implements Hooks {
    private final Hooks hooks;
    private final Logger log;

    QuietHooks(Hooks hooks, Logger log) {
      this.hooks = hooks;
      this.log = log;
    }

    private void call(String name, Runnable hook) {
      try {
        hook.run();
      } catch (RuntimeException | Error e) {
        log.log(Level.ERROR, "the hook " + name + " has failed", e);
      }
    }

    @Override
    public void onBegin(Delivery delivery) {
      call("onBegin", () -> hooks.onBegin(delivery));
    }

    @Override
    public void onQueued(int position) {
      call("onQueued", () -> hooks.onQueued(position));
    }

    @Override
    public void onLost(LostReason reason) {
      call("onLost", () -> hooks.onLost(reason));
    }

    @Override
    public void onEnd(String outcome) {
      call("onEnd", () -> hooks.onEnd(outcome));
    }
  }
}
