#!/usr/bin/env node
// Starts the server's binary in place of this process where Node can do that, else as its child.
import { spawn } from "node:child_process";
import { constants } from "node:os";
import { binaryPath } from "../index.js";

function startAsChild(binary, args) {
  const child = spawn(binary, args, { stdio: "inherit" });
  for (const signal of ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"]) {
    process.on(signal, () => {
      // A terminal sends its signals to the child as well; a second one would end a drain early.
      if (signal === "SIGTERM" || !process.stdin.isTTY) child.kill(signal);
    });
  }
  child.on("error", fail);
  child.on("exit", (code, signal) => process.exit(code ?? 128 + constants.signals[signal]));
}

function fail(error) {
  console.error(`oncegate: ${error.message}`);
  process.exitCode = 1;
}

try {
  const binary = binaryPath();
  const args = process.argv.slice(2);
  // From Node 22.15 and 23.11 on.
  if (process.execve) process.execve(binary, [binary, ...args], process.env);
  else startAsChild(binary, args);
} catch (error) {
  fail(error);
}
