/** What was thrown, as a text. It never throws, whatever a handler may have thrown. */
export function describe(thrown: unknown): string {
  try {
    return thrown instanceof Error ? `${thrown.name}: ${thrown.message}` : String(thrown);
  } catch {
    return "an error that has no text";
  }
}
