import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Duplicate, Gate, Reject, Session, type Turn, TurnLost } from "../../src/index.js";
import { Testbed } from "../conformance/testbed.js";

let testbed: Testbed;
let gate: Gate;
let events = 0;

/** A delivery of an event that no other test has. */
function delivery() {
  events += 1;
  return { team: "T1", event: `E${events}`, session: `S${events}` };
}

function lose({ team, session }: { team: string; session: string }) {
  return testbed.do("lose", { team, session });
}

async function stateOf({ team, event }: { team: string; event: string }) {
  return (await gate.seen({ team, event })).state;
}

beforeAll(async () => {
  testbed = await Testbed.start("sqlite");
  gate = new Gate({ server: testbed.replicas[0], holder: "a" });
});

afterAll(async () => {
  await gate.close();
  await testbed[Symbol.asyncDispose]();
});

describe("a scope", () => {
  test("is failed unless `succeed` was called", async () => {
    const given = delivery();
    {
      await using turn = await gate.begin(given);
      expect(turn.held).toBe(true);
    }
    expect(await stateOf(given)).toBe("NOT_SEEN");
    {
      await using turn = await gate.begin(given);
      expect(turn.attempt).toBe(2);
      await turn.succeed({ ts: 1 });
      expect(turn.held).toBe(false);
    }
    await expect(gate.begin(given)).rejects.toMatchObject({ kind: "duplicate", result: { ts: 1 } });
  });

  test("lets the body's own error out, and nothing around it", async () => {
    const given = delivery();
    const own = new Error("no disk");
    const body = async () => {
      await using _turn = await gate.begin(given);
      await lose(given);
      throw own;
    };
    await expect(body()).rejects.toBe(own);
  });

  test("is ended once", async () => {
    await using turn = await gate.begin(delivery());
    await turn.succeed();
    await expect(turn.succeed()).rejects.toThrow("ended already");
    await turn.fail(); // does nothing
  });

  test("of a lease reports its loss when it is released, and throws nothing when it is left", async () => {
    const given = delivery();
    await using lease = await gate.lease(given);
    await lose(given);
    expect(await lease.lost).toBe("LEASE_LOST");
    expect(() => lease.check()).toThrow("LEASE_LOST");
    await expect(lease.release()).rejects.toMatchObject({ name: "LeaseLost", reason: "LEASE_LOST" });
  });
});

describe("a loss", () => {
  test("aborts the signal with the error, and resolves `lost`", async () => {
    const given = delivery();
    const outcome = gate.turn(given, async (turn) => {
      await lose(given);
      expect(await turn.lost).toBe("LEASE_LOST");
      expect(turn.signal.reason).toBeInstanceOf(TurnLost);
      expect(() => turn.check()).toThrow(TurnLost);
      turn.signal.throwIfAborted();
    });
    await expect(outcome).rejects.toMatchObject({ name: "TurnLost", reason: "LEASE_LOST" });
  });

  test("is reported with the value of a handler that ignores it", async () => {
    const given = delivery();
    const outcome = gate.turn(given, async (turn) => {
      await lose(given);
      await turn.lost;
      return "late";
    });
    await expect(outcome).rejects.toMatchObject({ name: "TurnLost", value: "late" });
  });

  test("is what a handler reports that was aborted by it, as functions of Node are", async () => {
    const given = delivery();
    const outcome = gate.turn(given, async (turn) => {
      await lose(given);
      await sleep(60_000, undefined, { signal: turn.signal });
    });
    const cause = expect.objectContaining({ name: "AbortError" });
    await expect(outcome).rejects.toMatchObject({ name: "TurnLost", reason: "LEASE_LOST", cause });
  });

  test("does not mask an error of the handler's own", async () => {
    const given = delivery();
    const own = new Error("no disk");
    const outcome = gate.turn(given, async (turn) => {
      await lose(given);
      await turn.lost;
      throw own;
    });
    await expect(outcome).rejects.toBe(own);
  });
});

describe("the caller's signal", () => {
  test("that is aborted already begins nothing", async () => {
    const given = delivery();
    const reason = new Error("shut down");
    await expect(gate.begin(given, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    expect(await stateOf(given)).toBe("NOT_SEEN");
  });

  test("leaves the queue", async () => {
    const given = delivery();
    await using turn = await gate.begin(given);
    const caller = new AbortController();
    const other = { ...given, event: `${given.event}-other` };
    const queued = gate.begin(other, { wait: "1m", signal: caller.signal });
    await expect.poll(() => turn.waiters, { timeout: 10_000 }).toBe(1);
    caller.abort(new Error("enough"));
    await expect(queued).rejects.toThrow("enough");
    await expect.poll(() => turn.waiters, { timeout: 10_000 }).toBe(0);
  });

  test("fails the turn whose handler stops", async () => {
    const given = delivery();
    const caller = new AbortController();
    const reason = new Error("enough");
    const outcome = gate.turn(given, { signal: caller.signal }, async (turn) => {
      caller.abort(reason);
      await sleep(60_000, undefined, { signal: turn.signal });
    });
    await expect(outcome).rejects.toMatchObject({ name: "AbortError", cause: reason });
    expect(await stateOf(given)).toBe("NOT_SEEN");
  });

  test("does not undo the work of a handler that finishes all the same", async () => {
    const given = delivery();
    const caller = new AbortController();
    const outcome = await gate.turn(given, { signal: caller.signal }, (turn) => {
      caller.abort();
      expect(turn.signal.aborted).toBe(true);
      return "done";
    });
    expect(outcome).toEqual({ kind: "ran", result: "done" });
    expect(await stateOf(given)).toBe("PROCESSED");
  });
});

describe("a handler", () => {
  test("may end or detach its turn itself", async () => {
    const [first, second] = [delivery(), delivery()];
    const handler = (turn: Turn) => turn.succeed("by hand");
    expect((await gate.turn(first, handler)).kind).toBe("ran");
    await expect(gate.begin(first)).rejects.toMatchObject({ result: "by hand" });

    let id = "";
    await gate.turn(second, async (turn) => {
      id = await turn.detach();
    });
    await using adopted = await gate.adopt(id, { ttl: "20s" });
    expect(adopted).toMatchObject({ held: true, keptBy: "renew", attempt: 1 });
    await adopted.succeed();
  });

  test("rejects an event for good", async () => {
    const given = delivery();
    const outcome = await gate.turn(given, () => {
      throw new Reject("not JSON");
    });
    expect(outcome).toEqual({ kind: "ran", result: undefined });
    await expect(gate.begin(given)).rejects.toMatchObject({ outcome: "REJECTED", detail: "not JSON" });
  });

  test("whose result cannot be encoded fails its turn", async () => {
    const given = delivery();
    await expect(gate.turn(given, () => 1n)).rejects.toThrow(TypeError);
    expect(await stateOf(given)).toBe("NOT_SEEN");
  });

  test("that blocks for three TTLs and returns at once has kept its turn", async () => {
    const given = delivery();
    const outcome = await gate.turn(given, { ttl: "1s" }, () => {
      const until = performance.now() + 3000;
      while (performance.now() < until);
      return "done";
    });
    expect(outcome).toEqual({ kind: "ran", result: "done" });
  });
});

test("a grant that arrives after its end is renewed by a call before the body is entered", async () => {
  const given = delivery();
  const { team, event } = given;
  await gate.turn(delivery(), () => "connected");
  await testbed.do("hold", { direction: "to_client" });
  const outcome = gate.turn(given, { ttl: "1s" }, (turn) => turn.leftMs);
  const state = async () => ((await testbed.do("look", { team, event })) as { state: string }).state;
  await expect.poll(state, { timeout: 10_000 }).toBe("IN_PROGRESS");
  await sleep(1500);
  await testbed.do("release", { direction: "to_client" });
  const { kind, result } = (await outcome) as { kind: string; result: number };
  expect(kind).toBe("ran");
  expect(result).toBeGreaterThan(0);
});

test("a codec that cannot read a result does not break the gate", async () => {
  const given = delivery();
  await gate.turn(given, () => "text");
  const codec = {
    encode: () => ({ data: new Uint8Array(), type: "" }),
    decode: () => {
      throw new Error("not mine");
    },
  };
  expect(await gate.turn(given, { codec }, () => undefined)).toMatchObject({
    kind: "duplicate",
    cause: expect.objectContaining({ message: "not mine" }),
  });
  expect(await gate.turn(given, () => 1)).toBeInstanceOf(Duplicate);
});

test("a session may be given as an object, or as a session", async () => {
  await using lease = await gate.lease({ team: "T1", thread: ["C1", "17.5"] });
  expect(lease.session).toBe("T1:C1:17.5");
  await expect(gate.lease(Session.thread("T1", "C1", "17.5"))).rejects.toMatchObject({
    kind: "busy",
    holder: "a",
  });
});
