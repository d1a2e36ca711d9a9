/** The process of a ChildClient. It exits when its standard input ends. */

import { createInterface } from "node:readline";
import { LocalClient } from "./client.js";
import type { Json, JsonObject, Step } from "./scenario.js";

const [name, server, options] = JSON.parse(process.argv[2] ?? "");
const client = new LocalClient(name, server, options);

function print(line: JsonObject): void {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

async function answer(request: JsonObject): Promise<void> {
  let ok: Json = null;
  if (request.do === "step") ok = await client.do(request.step as Step);
  else await client.close();
  print({ id: request.id, ok });
}

print({ ready: true });
for await (const line of createInterface(process.stdin)) void answer(JSON.parse(line));
