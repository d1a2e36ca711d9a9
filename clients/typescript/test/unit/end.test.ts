/** The end of a turn or lease, against a server in this process. */

import { create } from "@bufbuild/protobuf";
import { afterEach, describe, expect, test, vi } from "vitest";
import { CallError, Code } from "../../src/call-error.js";
import { TurnOutcome } from "../../src/gen/oncegate/v1/event_pb.js";
import { ReleaseSessionLeaseResponseSchema } from "../../src/gen/oncegate/v1/idempotency_service_pb.js";
import { LeaseLost, TurnLost } from "../../src/index.js";
import { makeGate } from "./fake-transport.js";

const delivery = { team: "T1", event: "E1" };
const session = { team: "T1", session: "S1" };
const loss = new CallError(Code.FAILED_PRECONDITION, "", { reason: "LEASE_LOST" });
const failed = String(TurnOutcome.FAILED);

afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

describe("the cause of a loss", () => {
  test("is the status, also for a handler that returns all the same", async () => {
    const { gate, transport } = makeGate();
    const outcome = gate.turn(delivery, () => {
      transport.streams[0]?.receiver.end(loss);
      return 7;
    });
    await expect(outcome).rejects.toMatchObject({ name: "TurnLost", value: 7, cause: loss });
  });

  test("is the status, also for the release of a lease", async () => {
    const { gate, transport } = makeGate();
    const lease = await gate.lease(session);
    transport.streams[0]?.receiver.end(loss);
    await expect(lease.release()).rejects.toMatchObject({ name: "LeaseLost", cause: loss });
  });
});

describe("a turn that is failed", () => {
  test("takes what was thrown as its detail", async () => {
    const { gate, transport } = makeGate();
    const turn = await gate.begin(delivery);
    await turn.fail(new Error("boom"));
    expect(transport.details).toEqual(["Error: boom"]);
    expect(turn.held).toBe(false);
  });

  test("and was lost before, is reported as lost", async () => {
    const hooks = { onEnd: vi.fn(), onLost: vi.fn() };
    const { gate, transport } = makeGate({ hooks });
    transport.endAnswer = loss;
    const own = new Error("no disk");
    const handler = () => {
      throw own;
    };
    await expect(gate.turn(delivery, handler)).rejects.toBe(own);
    expect(hooks.onLost.mock.calls).toEqual([["LEASE_LOST"]]);
    expect(hooks.onEnd.mock.calls).toEqual([["LOST"]]);
  });

  test("on a stream without an answer has time for a call", async () => {
    vi.useFakeTimers();
    const { gate, transport } = makeGate();
    transport.endAnswer = "silent";
    const turn = await gate.begin(delivery);
    const ended = turn.fail();
    await vi.advanceTimersByTimeAsync(1000);
    expect(transport.called("FinishTurn")).toHaveLength(1);
    await ended;
  });
});

describe("check, after the end", () => {
  test("of a turn", async () => {
    const { gate } = makeGate();
    const turn = await gate.begin(delivery);
    await turn.succeed();
    expect(() => turn.check()).toThrow(TurnLost);
    expect(() => turn.check()).toThrow("the turn has ended; write before its end");
    expect(turn.lostReason).toBeUndefined();
  });

  test("of a lease", async () => {
    const { gate } = makeGate();
    const lease = await gate.lease(session);
    await lease.release();
    expect(() => lease.check()).toThrow(LeaseLost);
    expect(() => lease.check()).toThrow("the lease has ended; write before its end");
  });
});

describe("a release", () => {
  test("is repeated as an overloaded server asks", async () => {
    vi.useFakeTimers();
    const { gate, transport } = makeGate();
    transport.answers.ReleaseSessionLease = () => {
      if (transport.called("ReleaseSessionLease").length > 1) return undefined;
      throw new CallError(Code.RESOURCE_EXHAUSTED, "full", { retryAfterMs: 100 });
    };
    const lease = await gate.lease(session);
    const released = lease.release();
    await vi.advanceTimersByTimeAsync(200);
    await released;
    expect(transport.called("ReleaseSessionLease")).toHaveLength(2);
  });

  test("after the trusted end has passed in a blocked event loop is a loss", async () => {
    const { gate } = makeGate();
    const lease = await gate.lease(session);
    const blockedUntil = performance.now() + 90_000;
    vi.spyOn(performance, "now").mockReturnValue(blockedUntil);
    await expect(lease.release()).rejects.toMatchObject({ name: "LeaseLost", reason: "EXPIRED" });
  });

  test("whose answer is lost is repeated, and what the repeat does not find is no loss", async () => {
    vi.useFakeTimers();
    const onLost = vi.fn();
    const { gate, transport } = makeGate({ hooks: { onLost } });
    transport.answers.ReleaseSessionLease = () => {
      if (transport.called("ReleaseSessionLease").length === 1) throw new CallError(Code.UNAVAILABLE, "");
      return create(ReleaseSessionLeaseResponseSchema, { released: false });
    };
    const lease = await gate.lease(session);
    const released = lease.release();
    await vi.advanceTimersByTimeAsync(200);
    await released;
    expect(transport.called("ReleaseSessionLease")).toHaveLength(2);
    expect(lease.lostReason).toBeUndefined();
    expect(onLost).not.toHaveBeenCalled();
  });
});

test("an unguarded turn has neither a beginning nor an end to report", async () => {
  const hooks = { onBegin: vi.fn(), onEnd: vi.fn() };
  const { gate, transport } = makeGate({ hooks, onUnavailable: "run", patience: 0 });
  transport.stream = () => {
    throw new CallError(Code.UNAVAILABLE, "away");
  };
  vi.useFakeTimers();
  const outcome = gate.turn(delivery, (turn) => turn.held);
  await vi.advanceTimersByTimeAsync(1000);
  expect(await outcome).toEqual({ kind: "ran", result: false });
  expect(hooks.onBegin).not.toHaveBeenCalled();
  expect(hooks.onEnd).not.toHaveBeenCalled();
});

test("a turn that is failed is failed once", async () => {
  const { gate, transport } = makeGate();
  const turn = await gate.begin(delivery);
  await Promise.all([turn.fail(), turn.fail()]);
  expect(transport.ends).toEqual([failed]);
});
