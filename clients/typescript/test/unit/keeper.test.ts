import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { CallError, Code } from "../../src/call-error.js";
import { Keeper, type Kept } from "../../src/keeper.js";
import { Keeping, type Measured } from "../../src/keeping.js";
import { monotonic } from "../../src/time.js";

const ttlMs = 30_000;
const fresh: Measured = { elapsedMs: 0, endsAfterMs: ttlMs };
const away = new CallError(Code.UNAVAILABLE, "away");

let kept: Kept & { renew: ReturnType<typeof vi.fn>; lost: ReturnType<typeof vi.fn> };
let start: number;

function keeper(): Keeper {
  start = monotonic.now();
  const state = new Keeping({ ttlMs, graceMs: undefined, keptBy: "stream" }, start, fresh, start);
  return new Keeper(state, monotonic, kept);
}

beforeEach(() => {
  vi.useFakeTimers();
  kept = { renew: vi.fn(() => Promise.resolve(fresh)), lost: vi.fn() };
});

afterEach(() => {
  expect(vi.getTimerCount(), "no timer is left behind").toBe(0);
  vi.useRealTimers();
});

describe("a keeper", () => {
  test("renews when the stream breaks, and goes on until it is stopped", async () => {
    const kept_ = keeper();
    kept_.broke(false);
    await vi.advanceTimersByTimeAsync(35_000);
    expect(kept.renew).toHaveBeenCalledTimes(4); // at 0, 10, 20 and 30 s
    kept_.stop();
    await vi.advanceTimersByTimeAsync(60_000);
    expect(kept.renew).toHaveBeenCalledTimes(4);
    expect(kept.lost).not.toHaveBeenCalled();
  });

  test("tries a renewal several times, over both connections, before the trusted end", async () => {
    kept.renew.mockRejectedValue(away);
    const kept_ = keeper();
    kept_.broke(false);
    await vi.advanceTimersByTimeAsync(1000);
    const options = kept.renew.mock.calls.slice(0, 3).map(([option]) => option);
    expect(options.map(({ over }) => over)).toEqual(["calls", "streams", "calls"]);
    for (const { deadlineMs } of options) expect(deadlineMs).toBe(5000);
    kept_.stop();
  });

  test("reports the trusted end once, however the renewals fail", async () => {
    kept.renew.mockRejectedValue(away);
    keeper().broke(false);
    await vi.advanceTimersByTimeAsync(28_900);
    expect(kept.lost).not.toHaveBeenCalled();
    await vi.advanceTimersByTimeAsync(60_000);
    expect(kept.lost.mock.calls).toEqual([["EXPIRED", undefined]]);
  });

  test("never rejects, also if a renewal throws what it should not", async () => {
    kept.renew.mockRejectedValueOnce(new TypeError("a bug")).mockImplementationOnce(() => {
      throw new TypeError("another one");
    });
    const kept_ = keeper();
    kept_.broke(false);
    await vi.advanceTimersByTimeAsync(1000);
    expect(kept.renew).toHaveBeenCalledTimes(3);
    kept_.stop();
  });

  test("reports the loss that a renewal finds", async () => {
    kept.renew.mockRejectedValue(new CallError(Code.FAILED_PRECONDITION, "", { reason: "MAX_HOLD" }));
    keeper().broke(false);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(kept.lost.mock.calls).toEqual([["MAX_HOLD", expect.any(CallError)]]);
    expect(kept.renew).toHaveBeenCalledTimes(1);
  });

  test("reads what arrived in a blocked event loop before it reports a loss", async () => {
    const kept_ = keeper();
    // The loop is blocked: the clock goes on, and the timer fires late.
    vi.spyOn(performance, "now").mockReturnValue(start + 90_000);
    await vi.advanceTimersByTimeAsync(12_000);
    expect(kept.lost).not.toHaveBeenCalled();
    kept_.heard(start, { elapsedMs: 85_000, endsAfterMs: 85_000 + ttlMs });
    await vi.advanceTimersByTimeAsync(1000);
    expect(kept.lost).not.toHaveBeenCalled();
    kept_.stop();
    vi.restoreAllMocks();
  });

  test("reports the loss after a blocked event loop if nothing has arrived", async () => {
    keeper();
    vi.spyOn(performance, "now").mockReturnValue(start + 90_000);
    await vi.advanceTimersByTimeAsync(12_100);
    expect(kept.lost.mock.calls).toEqual([["EXPIRED", undefined]]);
    vi.restoreAllMocks();
  });
});
