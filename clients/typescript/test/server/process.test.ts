/** What a gate does to its process. Each program runs in one of its own. */

import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Testbed } from "../conformance/testbed.js";

const index = fileURLToPath(new URL("../../src/index.ts", import.meta.url));

let testbed: Testbed;

beforeAll(async () => {
  testbed = await Testbed.start("sqlite");
});

afterAll(() => testbed[Symbol.asyncDispose]());

/** Runs a program with a gate, to its end. */
async function run(program: string): Promise<string> {
  const source = `
    import { setTimeout as sleep } from "node:timers/promises";
    import { Gate } from ${JSON.stringify(index)};
    const gate = new Gate({ server: ${JSON.stringify(testbed.replicas[0])}, ttl: "2s", patience: "1s" });
    ${program}`;
  const args = ["--import", "tsx", "--input-type=module", "--no-warnings", "--eval", source];
  const { stdout } = await promisify(execFile)(process.execPath, args, { timeout: 30_000 });
  return stdout.trim();
}

test("a process ends although its gate is not closed", async () => {
  const printed = await run(`
    const { kind } = await gate.turn({ team: "T1", event: "idle", session: "S1" }, () => 1);
    await gate.mark({ team: "T1", event: "marked" });
    console.log(kind);`);
  expect(printed).toBe("ran");
});

test("a process does not end while a turn is open that calls renew", async () => {
  const printed = await run(`
    const begun = await gate.begin({ team: "T1", event: "kept", session: "S2" });
    const turn = await gate.adopt(await begun.detach());
    setTimeout(() => turn.succeed().then(() => console.log("ended", turn.lostReason)), 5000).unref();`);
  expect(printed).toBe("ended undefined");
});

test("a closed gate leaves nothing behind", async () => {
  const printed = await run(`
    const before = process.getActiveResourcesInfo().length;
    void gate.turn({ team: "T1", event: "open", session: "S3" }, () => sleep(60_000, 0, { ref: false })).catch(() => {});
    const queued = gate.begin({ team: "T1", event: "queued", session: "S3" }, { wait: "1m" }).catch((error) => error.name);
    await gate.lease({ team: "T1", session: "S4" });
    await gate.close();
    console.log(await queued, (await gate.begin({ team: "T1", event: "late" }).catch((error) => error)).name);
    await sleep(500); // the abandoned request is given up, the sockets are closed
    console.log(process.getActiveResourcesInfo().filter((name) => name !== "Timeout").length <= before);
    const again = new Gate({ server: ${JSON.stringify(testbed.replicas[0])} });
    console.log((await again.seen({ team: "T1", event: "open" })).state);`);
  expect(printed.split("\n")).toEqual(["Unavailable Unavailable", "true", "NOT_SEEN"]);
});

test("a loss that nobody looks at does not end the process", async () => {
  const program = run(`
    const turn = await gate.begin({ team: "T1", event: "lost", session: "S5" });
    const lease = await gate.lease({ team: "T1", session: "S6" });
    await (await gate.lease({ team: "T1", session: "S7" })).release();
    while (!turn.lostReason || !lease.lostReason) await sleep(20);
    console.log(turn.lostReason, lease.lostReason);`);
  // Both have begun by then: for one that is lost on its way, the gate asks for another.
  const ready = async () =>
    ((await testbed.do("look", { team: "T1", session: "S7" })) as { state: string }).state;
  await expect.poll(ready, { timeout: 20_000 }).toBe("FREE");
  for (const session of ["S5", "S6"]) await testbed.do("lose", { team: "T1", session });
  expect(await program).toBe("LEASE_LOST LEASE_LOST");
});
