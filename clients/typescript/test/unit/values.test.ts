import { create, type DescMessage, type Message, toBinary } from "@bufbuild/protobuf";
import { anyPack, durationFromMs } from "@bufbuild/protobuf/wkt";
import { describe, expect, test, vi } from "vitest";
import { CallError, Code, readDetails } from "../../src/call-error.js";
import { header, toBytes } from "../../src/delivery.js";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  RetryInfoSchema,
  StatusSchema,
} from "../../src/gen/oncegate/client/status_pb.js";
import * as github from "../../src/github.js";
import * as oncegate from "../../src/index.js";
import {
  Delivery,
  EpicMismatch,
  Internal,
  Invalid,
  jsonCodec,
  jsonCodecOf,
  Overloaded,
  PayloadMismatch,
  TurnLost,
  Unavailable,
} from "../../src/index.js";
import { toTurnSettings } from "../../src/options.js";
import * as slack from "../../src/slack.js";
import { settlesWithin, sleep, toMs } from "../../src/time.js";
import { cutBytes } from "../../src/wire.js";

describe("times", () => {
  test.each([
    [1500, 1500],
    ["500ms", 500],
    ["20s", 20_000],
    ["1.5m", 90_000],
    ["2h", 7_200_000],
  ] as const)("%s", (time, ms) => {
    expect(toMs(time, "ttl")).toBe(ms);
  });

  test.each(["20", "s", "-1s", "1d", "", " 1s"])("%j is refused, and the option is named", (time) => {
    expect(() => toMs(time as "1s", "wait")).toThrow(
      expect.objectContaining({ name: "Invalid", field: "wait" }),
    );
  });

  test.each([-1, Number.NaN, Infinity])("%d is refused", (time) => {
    expect(() => toMs(time, "wait")).toThrow(Invalid);
  });
});

test("a time that is too long for a timer of Node is no time that is over", async () => {
  vi.useFakeTimers();
  const never = new Promise(() => {});
  const isOver = vi.fn();
  void settlesWithin(never, toMs("1000h", "time")).then(isOver);
  void sleep(toMs("1000h", "time")).then(isOver);
  await vi.advanceTimersByTimeAsync(60_000);
  expect(isOver).not.toHaveBeenCalled();
  vi.useRealTimers();
});

describe("the grace", () => {
  test.each([
    ["45s", 22_500],
    ["8s", 5000],
    ["3s", 3000],
  ] as const)("of a TTL of %s is %d ms", (ttl, graceMs) => {
    expect(toTurnSettings({ ttl }, {}).graceMs).toBe(graceMs);
  });

  test("is at most the TTL, also as an option", () => {
    expect(toTurnSettings({ ttl: "10s", grace: "1m" }, {}).graceMs).toBe(10_000);
    expect(toTurnSettings({ ttl: "10s", grace: "1m" }, { grace: 2000 }).graceMs).toBe(2000);
  });

  test("of the margin or less is refused: nothing could be trusted", () => {
    for (const grace of [0, 1000]) {
      const settings = () => toTurnSettings({ ttl: "10s" }, { grace });
      expect(settings).toThrow(expect.objectContaining({ name: "Invalid", field: "grace" }));
    }
  });
});

describe("codecs", () => {
  test.each([[null], [0], [""], ["text"], [{ a: [1, { b: null }] }], [false]])("JSON keeps %j", (value) => {
    const { data, type } = jsonCodec.encode(value);
    expect(type).toBe("application/json");
    expect(jsonCodec.decode(data, type)).toEqual(value);
  });

  test("nothing is stored for undefined", () => {
    const { data, type } = jsonCodec.encode(undefined);
    expect(data).toHaveLength(0);
    expect(jsonCodec.decode(data, type)).toBeUndefined();
  });

  test("bytes pass as they are, also those of another client", () => {
    const bytes = Uint8Array.of(0, 255, 128);
    const { data, type } = jsonCodec.encode(bytes);
    expect(jsonCodec.decode(data, type)).toEqual(bytes);
    expect(jsonCodec.decode(bytes, "")).toEqual(bytes);
  });

  test("a parse function restores the type", () => {
    const dates = jsonCodecOf((value) => new Date(String(value)));
    const { data, type } = dates.encode(new Date(0));
    expect(dates.decode(data, type)).toEqual(new Date(0));
  });
});

describe("errors of calls", () => {
  type Part = readonly [DescMessage, Message];

  /** As the server sends it: under Google's names. */
  function trailerOf(...parts: Part[]): Uint8Array {
    const details = parts.map(([schema, message]) => {
      const any = anyPack(schema, message);
      return { ...any, typeUrl: any.typeUrl.replace("oncegate.client", "google.rpc") };
    });
    return toBinary(StatusSchema, create(StatusSchema, { details }));
  }

  test("the details are read from the trailer", () => {
    const trailer = trailerOf(
      [
        ErrorInfoSchema,
        create(ErrorInfoSchema, { domain: "oncegate", reason: "QUEUE_FULL", metadata: { a: "b" } }),
      ],
      [RetryInfoSchema, create(RetryInfoSchema, { retryDelay: durationFromMs(1500) })],
      [BadRequestSchema, create(BadRequestSchema, { fieldViolations: [{ field: "event.team_id" }] })],
    );
    expect(readDetails(trailer)).toEqual({
      reason: "QUEUE_FULL",
      info: { a: "b" },
      retryAfterMs: 1500,
      field: "event.team_id",
    });
  });

  test("the reason of another service is not oncegate's", () => {
    const info = create(ErrorInfoSchema, { domain: "istio.io", reason: "CLAIM_LOST" });
    expect(readDetails(trailerOf([ErrorInfoSchema, info]))).toEqual({});
  });

  test("a trailer that is broken says nothing", () => {
    expect(readDetails(Buffer.from([0xff, 0xff]))).toEqual({});
    const value = Buffer.from([0xff]);
    const details = [{ typeUrl: "type.googleapis.com/google.rpc.RetryInfo", value }];
    expect(readDetails(toBinary(StatusSchema, create(StatusSchema, { details })))).toEqual({});
  });

  test.each([
    [Code.UNAVAILABLE, { reason: "DRAINING" }, Unavailable],
    [Code.UNAVAILABLE, {}, Unavailable],
    [Code.DEADLINE_EXCEEDED, {}, Unavailable],
    [Code.CANCELLED, {}, Unavailable],
    [Code.INTERNAL, {}, Unavailable],
    [Code.INTERNAL, { reason: "INTERNAL" }, Internal],
    [Code.RESOURCE_EXHAUSTED, { reason: "TOO_MANY_CALLS", retryAfterMs: 1000 }, Overloaded],
    [Code.RESOURCE_EXHAUSTED, { reason: "METADATA_TOO_LARGE" }, Invalid],
    [Code.INVALID_ARGUMENT, { reason: "INVALID_FIELD", field: "event.team_id" }, Invalid],
    [Code.OUT_OF_RANGE, { reason: "MESSAGE_TOO_LARGE" }, Invalid],
    [Code.FAILED_PRECONDITION, { reason: "EPIC_MISMATCH", info: { epic_id: "ISSUE-1" } }, EpicMismatch],
    [Code.FAILED_PRECONDITION, { reason: "PAYLOAD_MISMATCH" }, PayloadMismatch],
    [Code.FAILED_PRECONDITION, { reason: "MAX_HOLD" }, TurnLost],
    [12, {}, Internal],
  ] as const)("status %d with %j", (code, details, kind) => {
    const cause = new CallError(code, "what happened", details);
    const error = cause.toError();
    expect(error).toBeInstanceOf(kind);
    expect(error.cause).toBe(cause);
  });
});

describe("deliveries", () => {
  test("Slack redelivers events, and neither interactions nor commands", () => {
    const event = { type: "event_callback", event: { type: "message" } };
    expect(slack.delivery(event).redelivers).toBe(true);
    expect(slack.delivery(JSON.stringify(event)).redelivers).toBe(true);
    expect(slack.delivery(toBytes(event)).redelivers).toBe(true);
    expect(slack.delivery({ type: "events_api", payload: event }).redelivers).toBe(true);
    expect(slack.delivery({ type: "block_actions" }).redelivers).toBe(false);
    expect(slack.delivery("payload=%7B%22type%22%3A%22view_submission%22%7D").redelivers).toBe(false);
  });

  test("headers are found in all the shapes that frameworks have", () => {
    const headers = { "X-GitHub-Delivery": ["72d3162e", "other"], Accept: undefined };
    expect(header(headers, "x-github-delivery")).toBe("72d3162e");
    expect(header(new Headers({ "Webhook-Id": "w1" }), "webhook-id")).toBe("w1");
    expect(header(new Map([["webhook-id", "w1"]]), "webhook-id")).toBe("w1");
    expect(header({}, "webhook-id")).toBeUndefined();
  });

  test("a session may be a text, a session, or none", () => {
    expect(new Delivery("T1", "E1").toSessionKey("")).toBeUndefined();
    expect(new Delivery("T1", "E1", { session: null }).toSessionKey("")).toBeUndefined();
    expect(new Delivery("T1", "E1", { session: "S1" }).toSessionKey("bot")).toMatchObject({
      teamId: "T1",
      key: { case: "sessionId", value: "S1" },
      consumer: "bot",
    });
  });

  test("a delivery's own consumer goes before the gate's", () => {
    expect(new Delivery("T1", "E1", { consumer: "hook" }).toEventKey("bot").consumer).toBe("hook");
    expect(new Delivery("T1", "E1").toEventKey("bot").consumer).toBe("bot");
  });
});

describe("a large body", () => {
  const limit = 256 * 1024;

  test("of GitHub is sent without its long texts and lists", () => {
    const commit = { id: "c".repeat(40), message: "m".repeat(3000), added: ["a.ts"] };
    const push = { ref: "refs/heads/main", repository: { id: 7 }, commits: Array(2000).fill(commit) };
    const { key } = github.delivery({ "X-GitHub-Delivery": "g1" }, JSON.stringify(push)).toEventKey("");
    const { body, headers } = key.value as { body: Uint8Array; headers: object };
    expect(body.length).toBeLessThan(limit);
    expect(headers).toEqual({ "x-github-delivery": "g1" });
    expect(JSON.parse(Buffer.from(body).toString())).toEqual({
      ...push,
      commits: Array(16).fill({ ...commit, message: "" }),
    });
  });

  test("of Slack is sent without its text", () => {
    const event = { type: "message", channel: "C1", ts: "17.5", text: "ö".repeat(limit), blocks: [] };
    const body = { team_id: "T1", event_id: "Ev1", event };
    const { key } = slack.delivery(body).toEventKey("");
    const sent = JSON.parse(Buffer.from(key.value as Uint8Array).toString());
    expect(sent).toEqual({ ...body, event: { ...event, text: "" } });
  });

  test("stays as it is if it is no JSON, or not too large", () => {
    for (const body of ["x".repeat(limit), JSON.stringify({ text: "x".repeat(5000) })]) {
      const { key } = slack.delivery(body).toEventKey("");
      expect(Buffer.from(key.value as Uint8Array).toString()).toBe(body);
    }
  });
});

test("a text is cut between characters", () => {
  expect(cutBytes("abc", 3)).toBe("abc");
  expect(cutBytes("aéé", 4)).toBe("aé");
  expect(cutBytes("a🦀", 4)).toBe("a");
});

test("turns and leases come from a gate: their classes are exported as types", () => {
  expect(oncegate).not.toHaveProperty("Turn");
  expect(oncegate).not.toHaveProperty("Lease");
});
