/** The real server with TLS and authentication. */

import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from "vitest";
import { Denied, Gate, type GateOptions, TurnLost, Unavailable } from "../../src/index.js";
import { ServerProcess } from "../../src/server-process.js";
import { Authority, forClient, forServer, type Pair } from "./certificates.js";

const binary = process.env.ONCEGATE_BINARY ?? "oncegate";
const first = { team: "T1", event: "E1" };
const second = { team: "T2", event: "E2" };

let folder: string;
let ca: Authority;
let client: Pair;
let serverArgs: string[];
let tokens: [first: string, second: string];
/** The principals of the file of `--auth`: two with a token and a team of their own, and one with a certificate. */
let principals: string[];
let authFile: string;
let server: ServerProcess | undefined;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "oncegate-server-"));
  ca = new Authority(folder);
  client = ca.issue("client", forClient);
  const { cert, key } = ca.issue("server", forServer);
  authFile = join(folder, "auth.toml");
  serverArgs = ["--tls-cert", cert, "--tls-key", key, "--auth", authFile];
  const made = [newToken(), newToken()] as const;
  tokens = [made[0].token, made[1].token];
  principals = [
    principal("first", "T1", made[0].line),
    principal("second", "T2", made[1].line),
    principal("certified", "T1", 'spiffe = ["spiffe://test/bot"]'),
  ];
});

afterAll(() => rmSync(folder, { recursive: true }));

beforeEach(() => {
  for (const name of ["SERVER", "TLS_CA", "CLIENT_CERT", "CLIENT_KEY", "TLS_SERVER_NAME", "TOKEN_FILE"])
    vi.stubEnv(`ONCEGATE_${name}`, undefined);
  writeFileSync(authFile, principals.join(""));
});

afterEach(async () => {
  vi.unstubAllEnvs();
  await server?.stop();
  server = undefined;
});

/** A token, and its line of the file. */
function newToken(): { token: string; line: string } {
  const [token = "", line = ""] = execFileSync(binary, ["token", "new"]).toString().split("\n");
  return { token, line };
}

function principal(name: string, team: string, credential: string): string {
  return `[[principal]]\nname = "${name}"\nrole = "bot"\nteams = ["${team}"]\n${credential}\n`;
}

/** Starts the server, and returns what a gate needs for it. */
async function serve(...args: string[]): Promise<GateOptions> {
  server = await ServerProcess.start(binary, [...serverArgs, ...args]);
  // Node warns of a server name that is an IP address.
  return { server: `https://${server.address.replace("127.0.0.1", "localhost")}`, tlsCa: ca.cert };
}

async function errorOf(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => expect.unreachable(),
    (error: unknown) => error,
  );
}

async function expectDenied(promise: Promise<unknown>, reason: string): Promise<void> {
  const error = await errorOf(promise);
  expect(error).toBeInstanceOf(Denied);
  expect(error).toMatchObject({ reason });
}

test("a token file that is replaced", async () => {
  const tokenFile = join(folder, "token");
  writeFileSync(tokenFile, `${tokens[0]}\n`);
  await using gate = new Gate({ ...(await serve()), tokenFile });
  expect((await gate.mark(first)).first).toBe(true);
  await expectDenied(gate.mark(second), "TEAM_DENIED");
  writeFileSync(tokenFile, `${tokens[1]}\n`);
  expect(await gate.turn(second, (turn) => turn.held)).toMatchObject({ kind: "ran", result: true });
  await expectDenied(
    gate.turn(first, () => {}),
    "TEAM_DENIED",
  );
});

test.each([{}, { token: "unknown" }])("a caller that the server does not know: %#", async (options) => {
  await using gate = new Gate({ ...(await serve()), ...options });
  await expectDenied(gate.mark(first), "UNAUTHENTICATED");
  await expectDenied(
    gate.turn(first, () => {}),
    "UNAUTHENTICATED",
  );
});

test("a turn whose token is revoked", async () => {
  await using gate = new Gate({ ...(await serve()), token: tokens[0] });
  const error = await errorOf(
    gate.turn(first, async (turn) => {
      writeFileSync(authFile, principals.slice(1).join(""));
      server?.signal("SIGHUP");
      await once(turn.signal, "abort");
      turn.signal.throwIfAborted();
    }),
  );
  expect(error).toBeInstanceOf(TurnLost);
  expect(error).toMatchObject({ reason: "DENIED" });
});

test("a client certificate", async () => {
  const options = await serve("--tls-client-ca", ca.cert);
  await using gate = new Gate({ ...options, tlsCert: client.cert, tlsKey: client.key });
  expect(await gate.turn(first, (turn) => turn.held)).toMatchObject({ kind: "ran", result: true });
  await expectDenied(gate.mark(second), "TEAM_DENIED");
});

// The message differs from that of a server that this client does not accept.
test.each(["missing", "of another CA", "expired", "for servers"])(
  "a client certificate that the server does not accept: %s",
  async (which) => {
    const options = await serve("--tls-client-ca", ca.cert);
    const issue = (): Pair => {
      if (which === "of another CA") return new Authority(folder, "other").issue("stranger", forClient);
      const purpose = which === "expired" ? forClient : forClient.replace("clientAuth", "serverAuth");
      return ca.issue(`wrong-${which.length}`, purpose, which === "expired" ? -3600 : 3600);
    };
    const { cert: tlsCert, key: tlsKey } = which === "missing" ? {} : issue();
    let message = "";
    // At times the connection is lost before the server's alert is read.
    for (let left = 3; left > 0 && !message.includes("client certificate"); left -= 1) {
      await using gate = new Gate({ ...options, tlsCert, tlsKey, patience: "3s" });
      const error = await errorOf(gate.mark(first));
      expect(error).toBeInstanceOf(Unavailable);
      message = String(error);
    }
    expect(message).toContain("does not accept the client certificate of tlsCert, or needs one");
    expect(message).not.toContain("tlsCa");
  },
  20_000,
);

test.each([true, false])(
  "a turn and a lease whose client certificate expires; is it renewed: %s",
  async (isRenewed) => {
    const options = await serve("--tls-client-ca", ca.cert);
    const [tlsCert, tlsKey] = [join(folder, "rotated.pem"), join(folder, "rotated.key")];
    const put = ({ cert, key }: Pair) => {
      copyFileSync(cert, tlsCert);
      copyFileSync(key, tlsKey);
    };
    const renewed = ca.issue(`renewed-${isRenewed}`, forClient);
    put(ca.issue(`short-${isRenewed}`, forClient, 5));
    await using gate = new Gate({ ...options, tlsCert, tlsKey });
    await using lease = await gate.lease({ team: "T1", session: "conversation" });
    const outcome = gate.turn(first, async (turn) => {
      if (isRenewed) put(renewed);
      // The streams end with the certificate. Its files were compared less than 10 s ago.
      while (turn.held && turn.keptBy === "stream") await sleep(20);
      await sleep(1000);
      turn.check();
      return turn.keptBy;
    });
    if (isRenewed) {
      expect(await outcome).toMatchObject({ kind: "ran", result: "renew" });
      lease.check();
    } else {
      expect(await errorOf(outcome)).toMatchObject({ name: "TurnLost", reason: "DENIED" });
      expect(lease.lostReason).toBe("DENIED");
    }
  },
  30_000,
);
