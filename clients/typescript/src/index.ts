export type { AccessOptions } from "./access.js";
export { CallError } from "./call-error.js";
export { type Codec, type Encoded, jsonCodec, jsonCodecOf } from "./codec.js";
export {
  type Body,
  Delivery,
  type DeliveryInit,
  type DeliveryOptions,
  type HeaderInit,
  type PayloadOptions,
  type Scope,
  Session,
  type SessionInit,
} from "./delivery.js";
export * from "./errors.js";
export { Gate, type Handler } from "./gate.js";
export type { KeptBy } from "./keeping.js";
export type { Lease } from "./lease.js";
export type { MarkItem, Seen } from "./marks.js";
export type {
  AdoptOptions,
  EndOutcome,
  GateOptions,
  Hooks,
  LeaseOptions,
  OnUnavailable,
  TurnOptions,
} from "./options.js";
export type { Outcome, Ran } from "./outcome.js";
export type { Time } from "./time.js";
export type { Turn } from "./turn.js";
