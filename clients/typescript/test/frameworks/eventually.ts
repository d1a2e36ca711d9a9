import { vi } from "vitest";

/** Repeats the assertion until it holds, for as long as a slow machine may need. */
export function eventually<T>(assertion: () => T | Promise<T>): Promise<T> {
  return vi.waitFor(assertion, { timeout: 30_000 });
}
