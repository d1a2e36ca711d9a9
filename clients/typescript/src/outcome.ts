import type { Busy, Dropped, Duplicate, GaveUp, InProgress } from "./errors.js";

/** The handler ran, and this is what it returned. */
export interface Ran<T> {
  readonly kind: "ran";
  readonly result: T;
}

/** The outcome of a delivery. Its `kind` decides it: a `switch` over all kinds is exhaustive. */
export type Outcome<T> = Ran<T> | Duplicate<T> | GaveUp | InProgress | Busy | Dropped;
