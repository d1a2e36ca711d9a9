import { describe, expect, test } from "vitest";
import { Keeping, type Measured, type Terms } from "../../src/keeping.js";

// A turn with a TTL of 30 s and a grace of 15 s; its margin is 1 s.
const turn: Terms = { ttlMs: 30_000, graceMs: 15_000, keptBy: "stream" };
const fresh: Measured = { elapsedMs: 0, endsAfterMs: 30_000 };

function granted(terms: Terms = turn, sent = 0, measured = fresh, now = sent): Keeping {
  return new Keeping(terms, sent, measured, now);
}

/** What the server reports of a renewal at a moment after the request. */
function renewal(elapsedMs: number): Measured {
  return { elapsedMs, endsAfterMs: elapsedMs + 30_000 };
}

describe("the trusted end", () => {
  test("counts from the sending of the request, not from the receipt of the answer", () => {
    const keeping = granted({ ...turn, graceMs: undefined }, 1000, fresh, 9000);
    expect(keeping.trustedEnd).toBe(1000 + 30_000 - 1000);
  });

  test("counts the time that the server took, such as in a queue", () => {
    const keeping = granted({ ...turn, graceMs: undefined }, 1000, {
      elapsedMs: 60_000,
      endsAfterMs: 90_000,
    });
    expect(keeping.trustedEnd).toBe(1000 + 90_000 - 1000);
  });

  test("has a margin of a tenth of the TTL, at most 1 s", () => {
    const short = { ...turn, ttlMs: 2000, graceMs: undefined };
    expect(granted(short, 0, { elapsedMs: 0, endsAfterMs: 2000 }).trustedEnd).toBe(1800);
  });

  test("is at most the grace after the latest news on the stream", () => {
    const keeping = granted();
    expect(keeping.trustedEnd).toBe(14_000);
    keeping.heard(10_000, 0, renewal(10_000));
    expect(keeping.trustedEnd).toBe(10_000 + 15_000 - 1000);
    keeping.heard(20_000, 0); // a message without an end
    expect(keeping.trustedEnd).toBe(24_000);
  });

  test("is free of the grace once a call has renewed", () => {
    const keeping = granted();
    keeping.broke(5000, false);
    expect(keeping.next(5000)).toBe("renew");
    keeping.renewed(5000, fresh);
    expect(keeping.keptBy).toBe("renew");
    expect(keeping.trustedEnd).toBe(5000 + 30_000 - 1000);
  });

  test("is free of the grace if the server ends the stream for a drain", () => {
    const keeping = granted();
    keeping.broke(5000, true);
    expect(keeping.trustedEnd).toBe(30_000 - 1000);
    expect(keeping.next(5000)).toBe("renew");
    keeping.notRenewed(20_000);
    expect(keeping.next(20_200)).toBe("renew");
  });

  test("comes earlier if a later measurement says so, as after a jump of the server's clock", () => {
    const keeping = granted({ ...turn, graceMs: undefined });
    keeping.heard(10_000, 0, { elapsedMs: 10_000, endsAfterMs: 15_000 });
    expect(keeping.trustedEnd).toBe(14_000);
  });

  test("does not follow news that are older than the latest", () => {
    const keeping = granted({ ...turn, graceMs: undefined });
    keeping.heard(10_000, 0, renewal(10_000));
    keeping.heard(11_000, 0, renewal(5000)); // read late
    expect(keeping.trustedEnd).toBe(39_000);
  });
});

describe("what is due", () => {
  test("nothing, while the server renews on the stream", () => {
    const keeping = granted();
    for (let now = 0; now <= 300_000; now += 10_000) {
      keeping.heard(now, 0, renewal(now));
      expect(keeping.next(now + 9999)).toBeUndefined();
    }
    expect(keeping.keptBy).toBe("stream");
  });

  test("a renewal by a call after 0.4 of the TTL without a message", () => {
    const keeping = granted();
    expect(keeping.wakeAt).toBe(12_000);
    keeping.heard(3000, 0); // any message counts
    expect(keeping.next(12_000)).toBeUndefined();
    keeping.heard(4000, 0, renewal(4000));
    expect(keeping.next(15_999)).toBeUndefined();
    expect(keeping.next(16_000)).toBe("renew");
  });

  test("a renewal by a call before a short grace is over, however much the stream says", () => {
    const keeping = granted({ ...turn, graceMs: 6000 });
    expect(keeping.trustedEnd).toBe(5000);
    expect(keeping.wakeAt).toBe(2500); // the server renews after 10 s
    keeping.heard(2400, 0); // a message without an end
    expect(keeping.next(2500)).toBe("renew");
    keeping.renewed(2500, fresh);
    expect(keeping.trustedEnd).toBe(2500 + 29_000);
  });

  test("a renewal at once when the stream breaks, and then one each third of the TTL", () => {
    const keeping = granted();
    keeping.broke(2000, false);
    expect(keeping.wakeAt).toBe(2000);
    expect(keeping.next(2000)).toBe("renew");
    expect(keeping.next(2001)).toBeUndefined(); // it is on its way
    keeping.renewed(2000, fresh);
    expect(keeping.next(11_999)).toBeUndefined();
    expect(keeping.next(12_000)).toBe("renew");
  });

  test("another try soon after a renewal without an answer", () => {
    const keeping = granted();
    keeping.broke(0, false);
    expect(keeping.next(0)).toBe("renew");
    keeping.notRenewed(1000);
    expect(keeping.next(1199)).toBeUndefined();
    expect(keeping.next(1200)).toBe("renew");
    keeping.notRenewed(13_940);
    expect(keeping.wakeAt).toBeCloseTo(13_960); // sooner before the end
  });

  test("another try when an overloaded server asks for it", () => {
    const keeping = granted();
    keeping.broke(0, false);
    expect(keeping.next(0)).toBe("renew");
    keeping.notRenewed(1000, 700);
    expect(keeping.wakeAt).toBe(1700);
  });

  test("no further try when the stream has spoken again meanwhile", () => {
    const keeping = granted();
    expect(keeping.next(12_000)).toBe("renew");
    keeping.heard(12_500, 0, renewal(12_500));
    keeping.notRenewed(13_000);
    expect(keeping.keptBy).toBe("stream");
    expect(keeping.wakeAt).toBe(12_500 + 12_000);
  });

  test("an adopted turn is renewed by calls from the start", () => {
    const keeping = granted({ ttlMs: 30_000, graceMs: undefined, keptBy: "renew" });
    expect(keeping.wakeAt).toBe(10_000);
    expect(keeping.next(10_000)).toBe("renew");
  });
});

describe("a turn whose lease is shorter than a third of its TTL", () => {
  // The server grants no lease for longer than 15 minutes.
  const long: Terms = { ttlMs: 3_600_000, graceMs: undefined, keptBy: "renew" };
  const cut: Measured = { elapsedMs: 0, endsAfterMs: 900_000 };

  test("is renewed in time once it is adopted", () => {
    const keeping = granted(long, 1000, cut);
    expect(keeping.trustedEnd).toBe(900_000);
    expect(keeping.wakeAt).toBe(1000 + 449_500);
    expect(keeping.next(keeping.wakeAt)).toBe("renew");
  });

  test("is renewed in time after each renewal", () => {
    const keeping = granted({ ...long, graceMs: 1_800_000, keptBy: "stream" }, 0, cut);
    keeping.broke(1000, true);
    expect(keeping.next(1000)).toBe("renew");
    keeping.renewed(1000, cut);
    expect(keeping.next(keeping.wakeAt)).toBe("renew");
  });
});

describe("a loss", () => {
  test("comes when the trusted end passes without news, also while a renewal is on its way", () => {
    const keeping = granted();
    keeping.broke(1000, false);
    expect(keeping.next(1000)).toBe("renew");
    expect(keeping.wakeAt).toBe(14_000);
    expect(keeping.next(13_999)).toBeUndefined();
    expect(keeping.next(14_000)).toBe("lost");
    expect(keeping.lost).toBe("EXPIRED");
  });

  test("is final, and its first reason stays", () => {
    const keeping = granted();
    keeping.lose("LEASE_LOST");
    keeping.lose("CLAIM_LOST");
    expect(keeping.lost).toBe("LEASE_LOST");
    expect(keeping.next(100_000)).toBeUndefined();
  });

  test("does not come from news that are read late", () => {
    const keeping = granted();
    // The loop was blocked until 40 s; then the messages of 10, 20 and 30 s are read.
    for (const moment of [10_000, 20_000, 30_000]) keeping.heard(40_000, 0, renewal(moment));
    expect(keeping.next(40_000)).toBeUndefined();
    expect(keeping.trustedEnd).toBe(44_000);
  });
});
