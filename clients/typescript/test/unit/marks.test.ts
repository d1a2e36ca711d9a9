import { create } from "@bufbuild/protobuf";
import { expect, test } from "vitest";
import { EventState } from "../../src/gen/oncegate/v1/event_pb.js";
import {
  type BatchMarkProcessedRequest,
  BatchMarkProcessedResponseSchema,
  IsProcessedResponseSchema,
} from "../../src/gen/oncegate/v1/idempotency_service_pb.js";
import { makeGate } from "./fake-transport.js";

/** A gate whose server marks everything. */
function makeMarkingGate() {
  const { gate, transport } = makeGate();
  transport.answers.BatchMarkProcessed = ({ request }) => {
    const { requests } = request as BatchMarkProcessedRequest;
    const results = requests.map(({ event }) => {
      const eventId = String(event?.key.value);
      return { result: { case: "response" as const, value: { first: true, event: { eventId } } } };
    });
    return create(BatchMarkProcessedResponseSchema, { results });
  };
  return { transport, gate };
}

function delivery(number: number) {
  return { team: "T1", event: `E${number}` };
}

test("a source that pauses gets its items marked meanwhile, and a break does not wait for it", async () => {
  const { gate, transport } = makeMarkingGate();
  async function* live() {
    yield delivery(1);
    yield delivery(2);
    await new Promise(() => {}); // no more for a long time
  }
  const ids: string[] = [];
  for await (const { eventId } of gate.markAll(live())) {
    ids.push(eventId);
    if (ids.length === 2) break;
  }
  expect(ids).toEqual(["E1", "E2"]);
  expect(transport.called("BatchMarkProcessed")).toHaveLength(1);
});

test("a source that has all items ready is marked in few requests", async () => {
  const { gate, transport } = makeMarkingGate();
  const all = Array.from({ length: 2500 }, (_, number) => delivery(number));
  let marked = 0;
  for await (const { first } of gate.markAll(all)) marked += Number(first);
  expect(marked).toBe(2500);
  expect(transport.called("BatchMarkProcessed")).toHaveLength(3);
});

test("an item that is invalid fails alone, in its place", async () => {
  const { gate } = makeMarkingGate();
  const deliveries = [
    delivery(1),
    { ...delivery(2), ttl: "soon" as "1s" },
    { ...delivery(3), digest: "ab" as never },
    { ...delivery(4), event: "x".repeat(1024 * 1024) }, // too large for any request
    delivery(5),
  ];
  const items = [];
  for await (const item of gate.markAll(deliveries)) items.push([item.eventId, item.error?.name]);
  expect(items).toEqual([
    ["E1", undefined],
    ["", "Invalid"],
    ["", "Invalid"],
    ["", "Invalid"],
    ["E5", undefined],
  ]);
});

test("the error of the source is thrown", async () => {
  const { gate } = makeMarkingGate();
  async function* broken() {
    yield delivery(1);
    throw new Error("no disk");
  }
  const read = async () => {
    for await (const _ of gate.markAll(broken()));
  };
  await expect(read()).rejects.toThrow("no disk");
});

test("the state of an event is read also if its result cannot be decoded", async () => {
  const { gate, transport } = makeGate();
  const stored = { result: Buffer.from("{"), resultType: "application/json" };
  transport.answers.IsProcessed = () =>
    create(IsProcessedResponseSchema, { state: EventState.PROCESSED, ...stored });
  expect(await gate.seen(delivery(1), { includeResult: true })).toMatchObject({
    state: "PROCESSED",
    result: undefined,
    error: expect.any(SyntaxError),
  });
});
