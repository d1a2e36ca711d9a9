import { settlesWithin } from "./time.js";

/** Stands where a source has no item ready. */
export const pause = Symbol("pause");

/** How long a source may take for its next item. */
const readyMs = 10;

/** The items of the source, and one pause before each item that is not ready at once. */
export async function* withPauses<T>(
  source: Iterable<T> | AsyncIterable<T>,
): AsyncGenerator<T | typeof pause> {
  if (!(Symbol.asyncIterator in source)) {
    yield* source;
    return;
  }
  const items = source[Symbol.asyncIterator]();
  let isOver = false;
  try {
    for (;;) {
      const next = items.next();
      if (!(await settlesWithin(next, readyMs))) yield pause;
      const item = await next;
      isOver = item.done === true;
      if (item.done) return;
      yield item.value;
    }
  } catch (error) {
    isOver = true; // the source's own error ends it
    throw error;
  } finally {
    // A source that waits for its next item returns only after it: the caller does not wait for that.
    if (!isOver) void Promise.resolve(items.return?.()).catch(() => {});
  }
}
