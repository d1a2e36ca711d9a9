import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { connect } from "node:net";
import type { Writable } from "node:stream";
import { expect, test, vi } from "vitest";
import { Duplicate } from "../../src/index.js";
import { ServerProcess } from "../../src/server-process.js";
import { startServer } from "../../src/testing.js";
import type { Time } from "../../src/time.js";
import { eventually } from "./eventually.js";

vi.mock("node:child_process", async (original) => {
  const actual = await original<typeof import("node:child_process")>();
  return { ...actual, spawn: vi.fn(actual.spawn) };
});

/** What the last calls of a function returned. */
function lastResults<R>({ mock }: { mock: { results: { value: R }[] } }, calls: number): R[] {
  return mock.results.slice(-calls).map(({ value }) => value);
}

const delivery = { team: "T1", event: "E1", session: "S1" };

test("each server has a database of its own", async () => {
  await using first = await startServer();
  await using second = await startServer();
  expect(await first.gate.turn(delivery, () => "a")).toMatchObject({ kind: "ran" });
  expect(await second.gate.turn(delivery, () => "b")).toMatchObject({ kind: "ran" });
});

// Such as that of a pod.
test("an environment for another server", async () => {
  for (const name of [
    "TLS_CA",
    "CLIENT_CERT",
    "CLIENT_KEY",
    "TLS_SERVER_NAME",
    "TOKEN_FILE",
    "TLS_CERT",
    "LISTEN",
  ])
    vi.stubEnv(`ONCEGATE_${name}`, "/no/such/file");
  try {
    await using started = await startServer();
    expect(await started.gate.turn(delivery, () => "a")).toMatchObject({ kind: "ran" });
    expect(await started.server.turns()).toEqual([]);
  } finally {
    vi.unstubAllEnvs();
  }
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

test.each([
  ["is killed", "SIGKILL", ""],
  [
    "is interrupted with its whole group, as by Ctrl-C, while the server is muted",
    "SIGINT",
    'started.signal("SIGSTOP");',
  ],
] as const)("neither the server nor its database outlives a process that %s", async (_, signal, before) => {
  const script = `
    const { ServerProcess } = await import(${JSON.stringify(new URL("../../src/server-process.ts", import.meta.url))});
    const started = await ServerProcess.start(process.env.ONCEGATE_BINARY ?? "oncegate", []);
    ${before}
    process.stdin.resume(); // do not end
    console.log(JSON.stringify({ address: started.address, folder: started.folder }));
  `;
  const owner = spawn(process.execPath, ["--import", "tsx", "--input-type=module", "-e", script], {
    stdio: ["pipe", "pipe", "inherit"],
    detached: true,
  });
  const [line] = await once(owner.stdout, "data");
  const { address, folder } = JSON.parse(String(line));
  expect(existsSync(folder)).toBe(true);
  const isGroup = signal === "SIGINT";
  process.kill(isGroup ? -(owner.pid as number) : (owner.pid as number), signal);
  await eventually(() => expect(existsSync(folder)).toBe(false));
  // The folder may be gone before the process that was killed.
  await eventually(async () => expect(await connectionTo(address)).toBe("ECONNREFUSED"));
});

/** What comes of a connection: an error, or nothing. */
async function connectionTo(address: string): Promise<string | undefined> {
  const [host, port] = address.split(":");
  const socket = connect(Number(port), host);
  socket.on("error", () => {}); // such as a reset, after it was made
  try {
    await once(socket, "connect");
    return undefined;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code;
  } finally {
    socket.destroy();
  }
}

test("a server that has ended is not killed again: another process may have its id", async () => {
  await using started = await startServer();
  const [watchdog] = lastResults(vi.mocked(spawn), 2);
  const written = vi.spyOn(watchdog?.stdin as Writable, "write");
  await started.server.kill();
  expect(written.mock.calls).toEqual([["\n"]]);
  await started.server.restart();
  const [child] = lastResults(vi.mocked(spawn), 1);
  expect(written.mock.lastCall).toEqual([`${child?.pid}\n`]);
});

test("a gate that cannot be made, or closed, leaves no server behind", async () => {
  const starts = vi.spyOn(ServerProcess, "start");
  const isGone = async () => {
    const [child] = lastResults(starts, 1);
    return !existsSync((await (child as Promise<ServerProcess>)).folder);
  };
  await expect(startServer({ gate: { ttl: "a while" as Time } })).rejects.toThrow("ttl");
  expect(await isGone()).toBe(true);

  const started = await startServer();
  vi.spyOn(started.gate, "close").mockRejectedValueOnce(new Error("the gate is broken"));
  await expect(started[Symbol.asyncDispose]()).rejects.toThrow("the gate is broken");
  expect(await isGone()).toBe(true);
});
