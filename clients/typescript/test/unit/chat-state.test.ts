/** The locks of a chat, against a server in this process. */

import { create } from "@bufbuild/protobuf";
import { createMemoryState } from "@chat-adapter/state-memory";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { withGate } from "../../src/chat-state.js";
import {
  AcquireSessionLeaseResponseSchema,
  type RenewSessionLeaseRequest,
} from "../../src/gen/oncegate/v1/idempotency_service_pb.js";
import { makeGate } from "./fake-transport.js";

const minutes = 60_000;

/** Each acquisition gets a lease of its own: "l1", "l2". */
async function connect() {
  const { gate, transport } = makeGate();
  transport.answers.AcquireSessionLease = () => {
    const count = transport.called("AcquireSessionLease").length;
    const value = { leaseId: `l${count}`, fencingToken: BigInt(count) };
    return create(AcquireSessionLeaseResponseSchema, { outcome: { case: "lease", value } });
  };
  const state = withGate(createMemoryState(), gate, { keep: true });
  await state.connect();
  const renewed = () =>
    transport.called("RenewSessionLease").map(({ request }) => (request as RenewSessionLeaseRequest).leaseId);
  return { state, renewed };
}

beforeEach(() => {
  vi.useFakeTimers();
});

afterEach(() => {
  vi.useRealTimers();
});

test("a lock that is kept is renewed in time, also if it is longer than any lease", async () => {
  const { state, renewed } = await connect();
  await state.acquireLock("t", 60 * minutes);
  await vi.advanceTimersByTimeAsync(10 * minutes);
  expect(renewed()).toEqual(["l1", "l1"]);
  await state.disconnect();
});

test("a lock whose lease was freed by an operator is renewed no more once its thread is locked again", async () => {
  const { state, renewed } = await connect();
  await state.acquireLock("t", 3 * minutes);
  await state.acquireLock("t", 3 * minutes);
  await vi.advanceTimersByTimeAsync(1 * minutes);
  expect(renewed()).toEqual(["l2"]);
  await state.disconnect();
});
