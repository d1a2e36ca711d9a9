package io.oncegate;

import java.util.HashSet;
import java.util.Set;

/** Warns of files that cannot be used: once for each option, until they can be used again. */
final class Outage {
  private final System.Logger log;
  private final String then;
  private final Set<String> warned = new HashSet<>();

  Outage(System.Logger log, String then) {
    this.log = log;
    this.then = then;
  }

  void warn(MisconfiguredException problem) {
    if (warned.add(problem.option())) {
      log.log(System.Logger.Level.WARNING, problem.getMessage() + "; " + then);
    }
  }

  void over() {
    warned.clear();
  }
}
