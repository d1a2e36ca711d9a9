/** From a request to its grant, against a server in this process. */

import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { CallError, Code } from "../../src/call-error.js";
import { TurnOutcome } from "../../src/gen/oncegate/v1/event_pb.js";
import type { RunTurnRequest } from "../../src/gen/oncegate/v1/turn_service_pb.js";
import { type Gate, type GateOptions, Invalid, Overloaded, TurnLost, Unavailable } from "../../src/index.js";
import { makeGate } from "./fake-transport.js";

const delivery = { team: "T1", event: "E1" };
const session = { team: "T1", session: "S1" };
const away = new CallError(Code.UNAVAILABLE, "away");
const full = new CallError(Code.RESOURCE_EXHAUSTED, "full", { reason: "LANE_FULL", retryAfterMs: 60_000 });
const leaseLost = new CallError(Code.FAILED_PRECONDITION, "", { reason: "LEASE_LOST" });
const claimLost = new CallError(Code.FAILED_PRECONDITION, "", { reason: "CLAIM_LOST" });

/** What the promise rejects with, once its timers have fired. */
async function rejection(promise: Promise<unknown>, withinMs: number): Promise<unknown> {
  let error: unknown;
  const settled = promise.catch((reason) => {
    error = reason;
  });
  await vi.advanceTimersByTimeAsync(withinMs);
  await settled;
  return error;
}

/** The end of a test whose gate has something open. */
async function close(gate: Gate): Promise<void> {
  const closed = gate.close();
  await vi.advanceTimersByTimeAsync(100);
  await closed;
}

beforeEach(() => {
  vi.useFakeTimers();
});

afterEach(() => {
  vi.useRealTimers();
});

describe("without patience, a server that is well", () => {
  test("grants a turn", async () => {
    const { gate, transport } = makeGate({ patience: 0, onUnavailable: "run" });
    transport.answersAfterMs = 200;
    const turn = gate.begin(delivery);
    await vi.advanceTimersByTimeAsync(200);
    expect((await turn).held).toBe(true);
    await close(gate);
  });

  test("answers a call", async () => {
    const { gate, transport } = makeGate({ patience: 0 });
    await gate.mark(delivery);
    expect(transport.calls).toMatchObject([{ name: "MarkProcessed", deadlineMs: 500 }]);
  });

  test("is asked once", async () => {
    const { gate, transport } = makeGate({ patience: 0 });
    transport.answersAfterMs = 60_000;
    expect(await rejection(gate.begin(delivery), 1000)).toBeInstanceOf(Unavailable);
    expect(transport.streams).toHaveLength(1);
  });
});

describe("a grant that comes after its trusted end", () => {
  /** 50 ms of the grace are trusted; the way to the server takes longer. */
  const late = { ttl: "10s", grace: "1050ms", patience: "1s" } as const;

  test("is renewed by a call before the body runs", async () => {
    const { gate, transport } = makeGate(late);
    transport.answersAfterMs = 150;
    const begun = gate.begin(delivery);
    await vi.advanceTimersByTimeAsync(150);
    const turn = await begun;
    expect(turn).toMatchObject({ held: true, keptBy: "renew" });
    expect(turn.leftMs).toBeGreaterThan(20_000);
    expect(transport.streams).toHaveLength(1);
    expect(transport.called("RenewTurn")).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(10_000);
    expect(transport.called("RenewTurn").length).toBeGreaterThan(1);
    await close(gate);
  });

  test("and is lost then, is asked for anew, by a request of its own", async () => {
    const onLost = vi.fn();
    const { gate, transport } = makeGate({ ...late, hooks: { onLost } });
    transport.answersAfterMs = 150;
    transport.answers.RenewTurn = () => {
      if (transport.streams.length === 1) throw claimLost;
    };
    const begun = gate.begin(delivery);
    await vi.advanceTimersByTimeAsync(500);
    expect((await begun).held).toBe(true);
    expect(onLost).not.toHaveBeenCalled();
    const ids = (transport.requests as RunTurnRequest[]).map(
      ({ step }) => step.case === "begin" && step.value.requestId,
    );
    expect(ids).toHaveLength(2);
    expect(ids[0]).not.toBe(ids[1]);
    await close(gate);
  });

  test("and is lost each time, is given up when the patience is over, and nothing is reported", async () => {
    const hooks = { onBegin: vi.fn(), onEnd: vi.fn(), onLost: vi.fn() };
    const { gate, transport } = makeGate({ ...late, hooks });
    transport.answersAfterMs = 150;
    transport.answers.RenewTurn = () => Promise.reject(claimLost);
    expect(await rejection(gate.begin(delivery), 1500)).toBeInstanceOf(Unavailable);
    expect(transport.streams.length).toBeLessThan(7);
    expect(transport.called("FinishTurn")).toHaveLength(0);
    for (const hook of Object.values(hooks)) expect(hook).not.toHaveBeenCalled();
    await close(gate);
  });

  test("is failed if it cannot be renewed", async () => {
    const { gate, transport } = makeGate(late);
    transport.answersAfterMs = 150;
    transport.answers.RenewTurn = () => Promise.reject(away);
    expect(await rejection(gate.begin(delivery), 5000)).toBeInstanceOf(Unavailable);
    expect(transport.ends).toEqual([String(TurnOutcome.FAILED)]);
    await close(gate);
  });
});

describe("a grant whose loss is read in the same moment", () => {
  test("is asked for anew, and only what the caller gets is reported", async () => {
    const hooks = { onBegin: vi.fn(), onEnd: vi.fn(), onLost: vi.fn() };
    const { gate, transport } = makeGate({ hooks });
    transport.answered = () => {
      if (transport.streams.length === 1) transport.streams[0]?.receiver.end(claimLost);
    };
    const outcome = gate.turn(delivery, (turn) => turn.held && !turn.signal.aborted);
    await vi.advanceTimersByTimeAsync(100);
    expect(await outcome).toEqual({ kind: "ran", result: true });
    expect(hooks.onBegin).toHaveBeenCalledOnce();
    expect(hooks.onEnd.mock.calls).toEqual([["SUCCEEDED"]]);
    expect(hooks.onLost).not.toHaveBeenCalled();
    await close(gate);
  });

  test("each time, is given up when the wait and the patience are over, and nothing is reported", async () => {
    const hooks = { onBegin: vi.fn(), onEnd: vi.fn(), onLost: vi.fn() };
    const { gate, transport } = makeGate({ patience: "1s", hooks });
    transport.answered = () => {
      if (transport.streams.length > 1000) throw new Error("asked without a pause");
      transport.streams.at(-1)?.receiver.end(claimLost);
    };
    const body = vi.fn();
    const outcome = gate.turn(delivery, { wait: "1s" }, body);
    expect(await rejection(outcome, 2100)).toBeInstanceOf(Unavailable);
    expect(transport.streams.length).toBeLessThan(12);
    expect(transport.called("FinishTurn")).toHaveLength(0);
    for (const unused of [body, ...Object.values(hooks)]) expect(unused).not.toHaveBeenCalled();
    await close(gate);
  });
});

describe("a lease whose first renewal fails", () => {
  test("because it is lost, is asked for again with pauses until the patience is over", async () => {
    const { gate, transport } = makeGate({ patience: "1s" });
    transport.answers.RenewSessionLease = () => {
      if (transport.streams.length > 1000) throw new Error("asked without a pause");
      throw leaseLost;
    };
    expect(await rejection(gate.lease(session), 1100)).toBeInstanceOf(Unavailable);
    expect(transport.streams.length).toBeLessThan(10);
    expect(transport.called("ReleaseSessionLease")).toHaveLength(0);
    await close(gate);
  });

  test.each([
    ["for an overload", full, Overloaded],
    ["without an answer", away, Unavailable],
    ["for a fault", new CallError(Code.INTERNAL, "", { reason: "FAULT" }), Error],
  ])("%s, is released", async (_, status, type) => {
    const { gate, transport } = makeGate({ patience: "2s" });
    transport.answers.RenewSessionLease = () => Promise.reject(status);
    expect(await rejection(gate.lease(session), 5000)).toBeInstanceOf(type);
    expect(transport.streams).toHaveLength(1);
    expect(transport.called("ReleaseSessionLease")).toHaveLength(1);
    await close(gate);
  });

  test("in vain, because its stream reports the loss meanwhile, is asked for again", async () => {
    const { gate, transport } = makeGate();
    transport.answers.RenewSessionLease = () => {
      if (transport.streams.length === 1) transport.streams[0]?.receiver.end(leaseLost);
    };
    const lease = gate.lease(session);
    await vi.advanceTimersByTimeAsync(100);
    expect((await lease).held).toBe(true);
    expect(transport.streams).toHaveLength(2);
    await close(gate);
  });
});

describe("adopt", () => {
  test("gives up a turn that is about to end when its patience is over", async () => {
    const { gate, transport } = makeGate({ patience: "1s" });
    transport.remainingMs = 900; // less than the margin
    transport.answers.RenewTurn = async () => {
      if (transport.calls.length > 1000) throw new Error("asked without a pause");
    };
    expect(await rejection(gate.adopt("t"), 1100)).toBeInstanceOf(Unavailable);
    expect(transport.called("RenewTurn").length).toBeLessThan(10);
    await close(gate);
  });

  test("is reported as a beginning", async () => {
    const onBegin = vi.fn();
    const { gate } = makeGate({ hooks: { onBegin } });
    const turn = await gate.adopt("t");
    expect(onBegin.mock.calls).toEqual([[turn]]);
    await close(gate);
  });

  test("throws the loss", async () => {
    const { gate, transport } = makeGate();
    transport.answers.RenewTurn = () => Promise.reject(claimLost);
    const error = await rejection(gate.adopt("t"), 100);
    expect(error).toBeInstanceOf(TurnLost);
    expect(error).toMatchObject({ reason: "CLAIM_LOST", cause: claimLost });
  });
});

describe("a gate that is drained in the moment of a grant", () => {
  test("fails the turn, and its body does not run", async () => {
    const { gate, transport } = makeGate();
    let drained: Promise<void> | undefined;
    transport.answered = () => {
      drained = gate.drain("5s");
    };
    const body = vi.fn();
    expect(await rejection(gate.turn(delivery, body), 100)).toBeInstanceOf(Unavailable);
    await drained;
    expect(body).not.toHaveBeenCalled();
    expect(transport.ends).toEqual([String(TurnOutcome.FAILED)]);
  });

  test("releases the lease", async () => {
    const { gate, transport } = makeGate();
    let drained: Promise<void> | undefined;
    transport.answered = () => {
      drained = gate.drain("5s");
    };
    expect(await rejection(gate.lease(session), 100)).toBeInstanceOf(Unavailable);
    await drained;
    expect(transport.called("ReleaseSessionLease")).toHaveLength(1);
  });
});

test("a gate that is closed says so", async () => {
  const { gate } = makeGate();
  await gate.close();
  await expect(gate.begin(delivery)).rejects.toThrow("the gate is closed");
});

describe("the grace", () => {
  test("is checked where it is used", async () => {
    const { gate } = makeGate({ ttl: "5s", grace: "800ms" });
    await (await gate.lease(session, { ttl: "1m" })).release();
    await (await gate.adopt("t", { ttl: "1m" })).succeed();
    await expect(gate.begin(delivery, { ttl: "1m" })).rejects.toThrow(Invalid);
    await close(gate);
  });

  test("of a gate is checked at once", () => {
    expect(() => makeGate({ ttl: "5s", grace: "500ms" })).toThrow(Invalid);
  });
});

describe("the consumer of a delivery", () => {
  const ofHook = { ...delivery, session: "S1", consumer: "hook" };
  const sessionOf = async (options: GateOptions) => {
    const { gate, transport } = makeGate(options);
    await gate.begin(ofHook);
    const { step } = transport.requests[0] as RunTurnRequest;
    await close(gate);
    return step.case === "begin" ? step.value.session?.consumer : undefined;
  };

  test("names its session, too", async () => {
    expect(await sessionOf({ consumer: "bot" })).toBe("hook");
  });

  test("names no session that all consumers share", async () => {
    expect(await sessionOf({ consumer: "bot", shareSessions: true })).toBe("");
  });
});
