/**
 * The client's CPU time per turn, beside that of a bare stub that has the same exchange by hand, and
 * the time to import the package. Run by: npm run bench. Fails above the limits.
 */

import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import * as grpc from "@grpc/grpc-js";
import { TurnOutcome } from "../src/gen/oncegate/v1/event_pb.js";
import {
  type RunTurnRequest,
  RunTurnRequestSchema,
  type RunTurnResponse,
  RunTurnResponseSchema,
} from "../src/gen/oncegate/v1/turn_service_pb.js";
import { Testbed } from "../test/conformance/testbed.js";

const built = new URL("../dist/index.js", import.meta.url).href;
const { Gate }: typeof import("../src/index.js") = await import(built);

const turns = 1000;
const atOnce = 16;
const warmUps = 3;
const rounds = 5;
const pairs = 4;
/** On a busy machine it takes more pairs to see the lowest of each. */
const mostPairs = 12;
const mostRatio = 1.5;
const mostImportMs = 300;

type RunTurn = (event: string) => Promise<void>;

/** RunTurn as an author would write it with grpc-js: begin, granted, end, finished. */
function bareStub(server: string): { run: RunTurn; close: () => void } {
  const client = new grpc.Client(server, grpc.credentials.createInsecure());
  const ttl = durationFromMs(45_000);
  const run: RunTurn = (event) =>
    new Promise((resolve, reject) => {
      const call = client.makeBidiStreamRequest<RunTurnRequest, RunTurnResponse>(
        "/oncegate.v1.TurnService/RunTurn",
        (message) => Buffer.from(toBinary(RunTurnRequestSchema, message)),
        (data) => fromBinary(RunTurnResponseSchema, data),
      );
      call.on("data", ({ news }: RunTurnResponse) => {
        if (news.case === "finished") return resolve();
        const end = {
          outcome: TurnOutcome.SUCCEEDED,
          result: Buffer.from(JSON.stringify({ answer: 42 })),
          resultType: "application/json",
        };
        call.write(create(RunTurnRequestSchema, { step: { case: "end", value: end } }));
      });
      call.on("error", reject);
      const begin = {
        event: { teamId: "T1", key: { case: "eventId" as const, value: event } },
        session: { key: { case: "sessionId" as const, value: event } },
        holder: "bench",
        requestId: crypto.randomUUID(),
        claimTtl: ttl,
        leaseTtl: ttl,
        grace: durationFromMs(22_500),
      };
      call.write(create(RunTurnRequestSchema, { step: { case: "begin", value: begin } }));
    });
  return { run, close: () => client.close() };
}

function library(server: string): { run: RunTurn; close: () => Promise<void> } {
  const gate = new Gate({ server, holder: "bench" });
  const run: RunTurn = async (event) => {
    const { kind } = await gate.turn({ team: "T1", event, session: event }, () => ({ answer: 42 }));
    if (kind !== "ran") throw new Error(kind);
  };
  return { run, close: () => gate.close() };
}

/** CPU time of this process per turn, in microseconds. */
async function cpuPerTurn(run: RunTurn, prefix: string): Promise<number> {
  let next = 0;
  const worker = async () => {
    for (; next < turns; ) {
      next += 1;
      await run(`${prefix}-${next}`);
    }
  };
  const before = process.cpuUsage();
  await Promise.all(Array.from({ length: atOnce }, worker));
  const { user, system } = process.cpuUsage(before);
  return (user + system) / turns;
}

/** The lowest counts, as in `measure`. */
function importMs(module: string): number {
  const program = `const t = performance.now(); await import(${JSON.stringify(module)}); console.log(performance.now() - t)`;
  const run = () => Number(execFileSync(process.execPath, ["--input-type=module", "--eval", program]));
  return Math.min(...Array.from({ length: 7 }, run));
}

/**
 * Measures one of the two in this process, once its code is warm. What else runs on the machine can
 * only make it dearer, so the lowest counts.
 */
async function measure(name: string, server: string, prefix: string): Promise<number> {
  const { run, close } = name === "bare" ? bareStub(server) : library(server);
  const times: number[] = [];
  for (let round = 0; round < warmUps + rounds; round += 1) {
    const time = await cpuPerTurn(run, `${name}-${prefix}-${round}`);
    if (round >= warmUps) times.push(time);
  }
  await close();
  return Math.min(...times);
}

/** Each has a process of its own, because one's code would slow the other's down. */
function measureApart(name: string, server: string, prefix: number): number {
  const args = ["--import", "tsx", fileURLToPath(import.meta.url), name, server, String(prefix)];
  return Number(execFileSync(process.execPath, args));
}

async function compare(): Promise<void> {
  await using testbed = await Testbed.start("sqlite");
  const server = testbed.replicas[0] as string;
  const bare: number[] = [];
  const gate: number[] = [];
  let [bareTime, gateTime, ratio] = [0, 0, Number.POSITIVE_INFINITY];
  for (let pair = 0; pair < pairs || (ratio > mostRatio && pair < mostPairs); pair += 1) {
    bare.push(measureApart("bare", server, pair));
    gate.push(measureApart("gate", server, pair));
    [bareTime, gateTime] = [Math.min(...bare), Math.min(...gate)];
    ratio = gateTime / bareTime;
  }
  const shown = [bareTime, gateTime].map((time) => `${time.toFixed(0)} µs`);
  console.log(`CPU per turn: bare stub ${shown[0]}, oncegate ${shown[1]}, ratio ${ratio.toFixed(2)}`);

  const [whole, grpcAlone] = [importMs(built), importMs("@grpc/grpc-js")];
  console.log(`import: oncegate ${whole.toFixed(0)} ms, of that @grpc/grpc-js ${grpcAlone.toFixed(0)} ms`);

  if (ratio > mostRatio) throw new Error(`the ratio is above ${mostRatio}`);
  if (whole > mostImportMs) throw new Error(`the import takes more than ${mostImportMs} ms`);
}

const [name, server, prefix] = process.argv.slice(2);
if (name && server && prefix) console.log(await measure(name, server, prefix));
else await compare();
