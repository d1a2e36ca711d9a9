import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { connect } from "node:net";
import { expect, test } from "vitest";
import { Duplicate } from "../../src/index.js";
import { startServer } from "../../src/testing.js";
import { eventually } from "./eventually.js";

const delivery = { team: "T1", event: "E1", session: "S1" };

test("each server has a database of its own", async () => {
  await using first = await startServer();
  await using second = await startServer();
  expect(await first.gate.turn(delivery, () => "a")).toMatchObject({ kind: "ran" });
  expect(await second.gate.turn(delivery, () => "b")).toMatchObject({ kind: "ran" });
});

test("a server that was killed keeps its events and its address", async () => {
  await using started = await startServer();
  const { gate, server } = started;
  const { address } = server;
  await gate.turn(delivery, () => 42);
  await server.kill();
  await server.restart();
  expect(server.address).toBe(address);
  const outcome = await gate.turn(delivery, () => 43);
  expect(outcome).toBeInstanceOf(Duplicate);
  expect(outcome).toMatchObject({ result: 42 });
});

test("a drained server leaves a turn to its holder", async () => {
  await using started = await startServer();
  const { gate, server } = started;
  const outcome = await gate.turn(delivery, async (turn) => {
    server.drain();
    await server.restart();
    return turn.attempt;
  });
  expect(outcome).toEqual({ kind: "ran", result: 1 });
});

test("a session that is taken away aborts its turn", async () => {
  await using started = await startServer({ gate: { consumer: "bot" } });
  const { gate, server } = started;
  const turn = await gate.begin(delivery);
  await server.lose({ team: "T1", session: "S1" });
  expect(await turn.lost).toBe("LEASE_LOST");
  expect(turn.signal.aborted).toBe(true);
});

test("open turns are listed, and those that have ended are not", async () => {
  await using started = await startServer({ gate: { holder: "pod-1" } });
  const { gate, server } = started;
  const turn = await gate.begin(delivery);
  expect(await server.turns("T1")).toEqual([{ team: "T1", event: "E1", holder: "pod-1", attempt: 1 }]);
  expect(await server.turns("T2")).toEqual([]);
  await turn.succeed();
  expect(await server.turns()).toEqual([]);
});

test("a muted server is silent until it is unmuted", async () => {
  await using started = await startServer({ gate: { patience: "500ms" } });
  const { gate, server } = started;
  await gate.mark({ team: "T1", event: "E0" });
  server.mute();
  await expect(gate.mark(delivery)).rejects.toThrow("refuse the delivery, or try again later");
  server.unmute();
  expect(await gate.turn({ team: "T1", event: "E2" }, () => 1)).toMatchObject({ kind: "ran" });
});

test("neither the server nor its database outlives a process that is killed", async () => {
  const script = `
    const { ServerProcess } = await import(${JSON.stringify(new URL("../../src/server-process.ts", import.meta.url))});
    const started = await ServerProcess.start(process.env.ONCEGATE_BINARY ?? "oncegate", []);
    console.log(JSON.stringify({ address: started.address, folder: started.folder }));
  `;
  const owner = spawn(process.execPath, ["--import", "tsx", "--input-type=module", "-e", script], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  const [line] = await once(owner.stdout, "data");
  const { address, folder } = JSON.parse(String(line));
  expect(existsSync(folder)).toBe(true);
  owner.kill("SIGKILL");
  await eventually(() => expect(existsSync(folder)).toBe(false));
  const [host, port] = address.split(":");
  await expect(once(connect(port, host), "connect")).rejects.toThrow("ECONNREFUSED");
});
