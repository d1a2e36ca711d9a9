import { getEventListeners } from "node:events";
import { create } from "@bufbuild/protobuf";
import { describe, expect, test, vi } from "vitest";
import { CallError, Code } from "../../src/call-error.js";
import { TurnOutcome } from "../../src/gen/oncegate/v1/event_pb.js";
import { RunTurnResponseSchema } from "../../src/gen/oncegate/v1/turn_service_pb.js";
import { Gate, Invalid, OutcomeUnknown, Reject, Unavailable } from "../../src/index.js";
import { deferred, makeGate } from "./fake-transport.js";

const delivery = { team: "T1", event: "E1" };
const failed = String(TurnOutcome.FAILED);
const overload = new CallError(Code.RESOURCE_EXHAUSTED, "full", { reason: "LANE_FULL", retryAfterMs: 30 });
const away = new CallError(Code.UNAVAILABLE, "away");

describe("a turn whose end cannot be sent is failed", () => {
  test("for a Reject whose detail is no text", async () => {
    const { gate, transport } = makeGate();
    const detail = Object.create(null) as string;
    const reject = () => {
      throw Object.assign(new Reject(""), { detail });
    };
    expect(await gate.turn(delivery, reject)).toMatchObject({ kind: "ran" });
    expect(transport.ends).toEqual([String(TurnOutcome.REJECTED)]);
  });

  test.each([
    ["as a handler's error", false],
    ["as the codec's error", true],
  ])("for a value without a text, %s", async (_, byCodec) => {
    const { gate, transport } = makeGate();
    const odd: unknown = Object.create(null);
    const encode = () => {
      throw odd;
    };
    const codec = { encode, decode: () => undefined };
    const handler = () => {
      if (!byCodec) throw odd;
    };
    await expect(gate.turn(delivery, { codec }, handler)).rejects.toBe(odd);
    expect(transport.ends).toEqual([failed]);
  });

  test("for a stream that cannot encode it", async () => {
    const { gate, transport } = makeGate();
    const invalid = new Invalid("", "no bytes");
    const turn = await gate.begin(delivery);
    const [stream] = transport.streams;
    if (stream) {
      const { send } = stream;
      vi.spyOn(stream, "send")
        .mockImplementationOnce(() => {
          throw invalid;
        })
        .mockImplementation(send);
    }
    await expect(turn.succeed()).rejects.toBe(invalid);
    expect(transport.ends).toEqual([failed]);
  });
});

test("a hook that throws changes nothing", async () => {
  const thrown = vi.fn(() => {
    throw new Error("a bug");
  });
  const { gate, transport } = makeGate({
    hooks: { onBegin: thrown, onLost: thrown, onEnd: thrown, onQueued: thrown },
  });
  expect(await gate.turn(delivery, () => 1)).toEqual({ kind: "ran", result: 1 });
  expect(thrown).toHaveBeenCalledTimes(2);
  const turn = await gate.begin(delivery);
  const loss = new CallError(Code.FAILED_PRECONDITION, "", { reason: "CLAIM_LOST" });
  transport.streams[1]?.receiver.end(loss);
  expect(await turn.lost).toBe("CLAIM_LOST");
  expect(turn.signal.reason).toMatchObject({ name: "TurnLost", cause: loss });
  expect(() => turn.check()).toThrow(expect.objectContaining({ cause: loss }));
  await turn.fail();
  await gate.close();
});

test("an asynchronous hook that rejects changes nothing", async () => {
  const warned = vi.spyOn(process, "emitWarning").mockImplementation(() => {});
  const { gate } = makeGate({ hooks: { onBegin: () => Promise.reject(new Error("a bug")) } });
  expect(await gate.turn(delivery, () => 1)).toEqual({ kind: "ran", result: 1 });
  await vi.waitFor(() => expect(warned).toHaveBeenCalled());
  expect(warned.mock.calls[0]?.[0]).toContain("Error: a bug");
  warned.mockRestore();
});

test("a stored result that cannot be decoded is a duplicate all the same, and not replayed", async () => {
  const { gate, transport } = makeGate();
  transport.insteadOfGrant = create(RunTurnResponseSchema, {
    news: {
      case: "duplicate",
      value: {
        event: { outcome: TurnOutcome.SUCCEEDED },
        result: Buffer.from("{"),
        resultType: "application/json",
      },
    },
  }).news;
  const cause = expect.any(SyntaxError);
  expect(await gate.turn(delivery, () => 1)).toMatchObject({
    kind: "duplicate",
    outcome: "SUCCEEDED",
    result: undefined,
    cause,
  });
  const once = gate.once(
    () => delivery,
    () => 1,
  );
  await expect(once()).rejects.toMatchObject({ name: "Duplicate", cause });
});

test("each turn reports its end once, also if it is lost", async () => {
  const onEnd = vi.fn();
  const { gate, transport } = makeGate({ hooks: { onEnd } });
  const loss = new CallError(Code.FAILED_PRECONDITION, "", { reason: "CLAIM_LOST" });
  const first = await gate.begin(delivery);
  transport.streams[0]?.receiver.end(loss);
  await first.fail();
  const second = await gate.begin(delivery);
  transport.endAnswer = loss;
  await expect(second.succeed(1)).rejects.toMatchObject({ name: "TurnLost", cause: loss });
  transport.endAnswer = undefined;
  await gate.begin(delivery);
  await gate.close();
  expect(onEnd.mock.calls).toEqual([["LOST"], ["LOST"], ["FAILED"]]);
});

describe("an end", () => {
  test("that finds the server overloaded is repeated as it asks", async () => {
    const { gate, transport } = makeGate();
    transport.endAnswer = overload;
    const started = performance.now();
    expect(await gate.turn(delivery, () => 1)).toEqual({ kind: "ran", result: 1 });
    expect(transport.called("FinishTurn")).toHaveLength(1);
    expect(performance.now() - started).toBeGreaterThanOrEqual(30);
  });

  test("is awaited by a gate that closes, and is no loss", async () => {
    const { gate, transport } = makeGate();
    const answer = deferred();
    transport.endAnswer = away;
    transport.answers.FinishTurn = () => answer.promise;
    const turn = await gate.begin(delivery);
    const ended = turn.succeed(1);
    await vi.waitFor(() => expect(transport.called("FinishTurn")).toHaveLength(1));
    let isClosed = false;
    const closed = gate.close().then(() => {
      isClosed = true;
    });
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(isClosed).toBe(false);
    expect(turn.lostReason).toBeUndefined();
    answer.resolve(undefined);
    await Promise.all([ended, closed]);
    expect(transport.called("FinishTurn")).toHaveLength(1);
  });

  test("over a transport that is closed has an unknown outcome", async () => {
    const { gate, transport } = makeGate();
    const turn = await gate.begin(delivery);
    transport.endAnswer = away;
    transport.answers.FinishTurn = () => Promise.reject(new Unavailable("the gate is closed", undefined));
    await expect(turn.succeed(1)).rejects.toThrow(OutcomeUnknown);
  });
});

describe("adopt", () => {
  test("stops when the caller's signal is aborted", async () => {
    const { gate, transport } = makeGate({ patience: "1m" });
    transport.answers.RenewTurn = () => Promise.reject(away);
    const caller = new AbortController();
    const adopted = gate.adopt("t", { signal: caller.signal });
    await vi.waitFor(() => expect(transport.calls.length).toBeGreaterThan(0));
    caller.abort(new Error("enough"));
    await expect(adopted).rejects.toThrow("enough");
  });

  test("fails the turn whose answer comes after the gate was closed", async () => {
    const { gate, transport } = makeGate();
    const answer = deferred();
    transport.answers.RenewTurn = () => answer.promise;
    const adopted = gate.adopt("t");
    await vi.waitFor(() => expect(transport.calls).toHaveLength(1));
    await gate.drain(0);
    answer.resolve(undefined);
    await expect(adopted).rejects.toThrow("drained");
    await vi.waitFor(() => expect(transport.called("FinishTurn")).toHaveLength(1));
  });
});

describe("a lease", () => {
  test("is not renewed in a hot loop, nor twice at once, while the server is overloaded", async () => {
    const { gate, transport } = makeGate();
    let running = 0;
    transport.answers.RenewSessionLease = async () => {
      running += 1;
      expect(running).toBe(1);
      transport.streams[0]?.receiver.end(away); // makes a keeper renew
      await new Promise((resolve) => setTimeout(resolve, 5));
      running -= 1;
      if (transport.called("RenewSessionLease").length < 3) throw overload;
    };
    const started = performance.now();
    const lease = await gate.lease({ team: "T1", session: "S1" });
    expect(performance.now() - started).toBeGreaterThanOrEqual(60);
    expect(transport.called("RenewSessionLease")).toHaveLength(3);
    await lease.release();
  });

  test("of a gate with a longer TTL than any lease has the longest", async () => {
    const { gate, transport } = makeGate({ ttl: "1h" });
    const lease = await gate.lease({ team: "T1", session: "S1" });
    const requests = [transport.requests[0], transport.called("RenewSessionLease")[0]?.request];
    expect(requests).toMatchObject([{ ttl: { seconds: 900n } }, { ttl: { seconds: 900n } }]);
    await lease.release();
  });

  test("is released if its caller stops waiting", async () => {
    const { gate, transport } = makeGate();
    const caller = new AbortController();
    transport.answers.RenewSessionLease = () => Promise.reject(away);
    const lease = gate.lease({ team: "T1", session: "S1" }, { signal: caller.signal });
    await vi.waitFor(() => expect(transport.calls.length).toBeGreaterThan(0));
    caller.abort(new Error("enough"));
    await expect(lease).rejects.toThrow("enough");
    expect(transport.called("ReleaseSessionLease")).toHaveLength(1);
  });
});

test("no listener stays at the caller's signal", async () => {
  const { gate } = makeGate();
  const { signal } = new AbortController();
  await gate.turn(delivery, { signal }, () => 1);
  const lease = await gate.lease({ team: "T1", session: "S1" }, { signal });
  await lease.release();
  await gate.close();
  await expect(gate.begin(delivery, { signal })).rejects.toThrow(Unavailable);
  await expect(gate.lease({ team: "T1", session: "S1" }, { signal })).rejects.toThrow(Unavailable);
  await expect(gate.adopt("t", { signal })).rejects.toThrow(Unavailable);
  expect(getEventListeners(signal, "abort")).toEqual([]);
});

test("a value that cannot be sent is a mistake of the caller, and no outage", async () => {
  const gate = new Gate({ server: "127.0.0.1:1", onUnavailable: "run", patience: 100 });
  const handler = vi.fn();
  await expect(gate.turn(delivery, { maxAttempts: 1.5 }, handler)).rejects.toThrow(Invalid);
  await expect(gate.mark({ ...delivery, digest: "ab" as never })).rejects.toThrow(Invalid);
  expect(handler).not.toHaveBeenCalled();
  await gate.close();
});
