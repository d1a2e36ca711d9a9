package io.oncegate;

/** An option of the gate, or the file that it names, cannot be used. */
public final class MisconfiguredException extends OncegateException {
  private static final long serialVersionUID = 1;

  private final String option;

  MisconfiguredException(String option, String problem) {
    super(option + ": " + problem + "; fix the settings of the gate", null);
    this.option = option;
  }

  /** The option, as its method of {@link Gate.Builder} is called. */
  public String option() {
    return option;
  }
}
