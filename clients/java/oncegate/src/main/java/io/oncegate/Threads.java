package io.oncegate;

import java.lang.System.Logger.Level;

/** Makes the threads of a gate. */
final class Threads {
  private Threads() {}

  /** A daemon, which inherits nothing of the caller that happens to need it, such as a request of a web server. */
  static Thread make(Runnable work, String name, System.Logger log) {
    Thread thread = new Thread(null, work, name, 0, false);
    thread.setDaemon(true);
    thread.setContextClassLoader(Gate.class.getClassLoader());
    thread.setUncaughtExceptionHandler((which, e) -> log.log(Level.ERROR, "a thread of the gate has failed", e));
    return thread;
  }
}
