import { afterEach, expect, test } from "vitest";
import { LineProcess, ProcessError } from "./lines.js";

const processes: LineProcess[] = [];

function start(script: string): LineProcess {
  const started = new LineProcess("bash", ["-c", script]);
  processes.push(started);
  return started;
}

afterEach(async () => {
  await Promise.all(processes.splice(0).map((process) => process.close()));
});

test("a question is answered", async () => {
  const process = start(`echo '{"ready": true}'; read; echo '{"id": 1, "ok": 42}'`);
  expect(await process.greeting).toEqual({ ready: true });
  expect(await process.ask("look")).toBe(42);
});

test("questions fail once the output has ended", async () => {
  const process = start(`echo '{"ready": true}'; exec 1>&-; cat >&2`);
  await process.greeting;
  await expect(process.ask("before")).rejects.toThrow(ProcessError);
  await expect(process.ask("after")).rejects.toThrow(ProcessError);
}, 5_000);
