import { appendFileSync, copyFileSync, mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { inspect } from "node:util";
import { create, toBinary } from "@bufbuild/protobuf";
import { anyPack } from "@bufbuild/protobuf/wkt";
import * as grpc from "@grpc/grpc-js";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { Access, lookAgainMs } from "../../src/access.js";
import { ErrorInfoSchema, StatusSchema } from "../../src/gen/oncegate/client/status_pb.js";
import { GrpcTransport } from "../../src/grpc.js";
import { Denied, Gate, type GateOptions, Misconfigured, TurnLost, Unavailable } from "../../src/index.js";
import { Authority, der, forClient, forServer, type Pair } from "./certificates.js";
import { Peer, type Refusal, unknown } from "./peer.js";

const delivery = { team: "T1", event: "E1" };

let folder: string;
let ca: Authority;
let otherCa: Authority;
let pair: Pair;
let client: Pair;
let tokenFile: string;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "oncegate-calls-"));
  ca = new Authority(folder);
  otherCa = new Authority(folder, "other");
  pair = ca.issue("server", forServer);
  client = ca.issue("client", forClient);
});

afterAll(() => rmSync(folder, { recursive: true }));

beforeEach(() => {
  for (const name of ["SERVER", "TLS_CA", "CLIENT_CERT", "CLIENT_KEY", "TLS_SERVER_NAME", "TOKEN_FILE"])
    vi.stubEnv(`ONCEGATE_${name}`, undefined);
  tokenFile = join(mkdtempSync(join(folder, "token-")), "token");
  writeFileSync(tokenFile, "planted-first\n");
});

afterEach(() => {
  vi.unstubAllEnvs();
});

function denied(reason: string): Refusal {
  const info = create(ErrorInfoSchema, { domain: "oncegate", reason });
  const status = create(StatusSchema, { details: [anyPack(ErrorInfoSchema, info)] });
  const metadata = new grpc.Metadata();
  metadata.set("grpc-status-details-bin", Buffer.from(toBinary(StatusSchema, status)));
  return { code: grpc.status.PERMISSION_DENIED, details: "no", metadata };
}

async function errorOf(promise: Promise<unknown>): Promise<Error> {
  const error = await promise.then(
    () => expect.unreachable(),
    (error: Error) => error,
  );
  expect(inspect(error, { depth: 20 })).not.toContain("planted");
  return error;
}

test("TLS with a CA", async () => {
  await using peer = await Peer.start({ pair });
  await using gate = new Gate({ server: peer.address, tlsCa: ca.cert });
  expect((await gate.mark(delivery)).first).toBe(true);
  expect(await gate.turn(delivery, (turn) => turn.held)).toMatchObject({ kind: "ran", result: true });
  expect(peer.tokens).toEqual([undefined, undefined]);
});

test("TLS with the settings of the environment", async () => {
  await using peer = await Peer.start({ pair });
  vi.stubEnv("ONCEGATE_SERVER", peer.address);
  vi.stubEnv("ONCEGATE_TLS_CA", ca.cert);
  vi.stubEnv("ONCEGATE_TOKEN_FILE", tokenFile);
  await using gate = new Gate();
  expect((await gate.mark(delivery)).first).toBe(true);
  expect(peer.tokens).toEqual(["Bearer planted-first"]);
});

test.each(["another CA", "the public CAs"])("a server certificate that %s did not issue", async (which) => {
  await using peer = await Peer.start({ pair });
  const own = which === "another CA" ? { tlsCa: otherCa.cert } : {};
  await using gate = new Gate({ server: peer.address, ...own, patience: "3s" });
  const begin = () => gate.turn(delivery, { patience: 0 }, () => {});
  for (const call of [() => gate.mark(delivery), begin]) {
    const error = await errorOf(call());
    expect(error).toBeInstanceOf(Unavailable);
    expect(error.message).toContain("not from a CA of tlsCa");
  }
  expect(peer.tokens).toEqual([]);
});

test("a name that the certificate does not have", async () => {
  await using peer = await Peer.start({ pair });
  const options: GateOptions = { server: peer.address, tlsCa: ca.cert, patience: "3s" };
  await using wrong = new Gate({ ...options, tlsServerName: "elsewhere" });
  expect((await errorOf(wrong.mark(delivery))).message).toContain("not valid for its name");
  const server = peer.address.replace("localhost", "127.0.0.1");
  await using gate = new Gate({ ...options, server, tlsServerName: "localhost" });
  expect((await gate.mark(delivery)).first).toBe(true);
});

test("a server certificate that has expired", async () => {
  await using peer = await Peer.start({ pair: ca.issue("expired-server", forServer, -3600) });
  await using gate = new Gate({ server: peer.address, tlsCa: ca.cert, patience: "3s" });
  const error = await errorOf(gate.mark(delivery));
  expect(error).toBeInstanceOf(Unavailable);
  expect(error.message).toMatch(/its certificate is .* expired/);
});

test("a client certificate", async () => {
  await using peer = await Peer.start({ pair, clientCa: ca.cert });
  const options: GateOptions = { server: peer.address, tlsCa: ca.cert };
  await using gate = new Gate({ ...options, tlsCert: client.cert, tlsKey: client.key });
  expect((await gate.mark(delivery)).first).toBe(true);
  expect(peer.certificates).toEqual([der(client.cert)]);
});

test("a new client certificate is used without a restart", async () => {
  const [tlsCert, tlsKey] = [join(folder, "rotated.pem"), join(folder, "rotated.key")];
  copyFileSync(client.cert, tlsCert);
  copyFileSync(client.key, tlsKey);
  const renewed = ca.issue("renewed", forClient);
  await using peer = await Peer.start({ pair, clientCa: ca.cert });
  const options: GateOptions = { server: peer.address, tlsCa: ca.cert, tlsCert, tlsKey };
  const transport = new GrpcTransport(new Access(options, () => {}, process.env, 0));
  await using gate = new (Gate as new (options: GateOptions, transport: GrpcTransport) => Gate)(
    options,
    transport,
  );
  const outcome = await gate.turn(delivery, async (turn) => {
    await gate.mark(delivery);
    copyFileSync(renewed.cert, tlsCert);
    await gate.mark(delivery); // half of the pair is not taken
    copyFileSync(renewed.key, tlsKey);
    await gate.mark(delivery);
    turn.check();
    return turn.keptBy; // its stream stays on its connection
  });
  expect(outcome).toMatchObject({ kind: "ran", result: "stream" });
  const old = der(client.cert);
  expect(peer.certificates).toEqual([old, old, old, der(renewed.cert)]);
});

test("a token file that changes between two calls", async () => {
  await using peer = await Peer.start();
  await using gate = new Gate({ server: peer.address, tokenFile });
  await gate.mark(delivery);
  writeFileSync(`${tokenFile}.new`, "planted-second");
  renameSync(`${tokenFile}.new`, tokenFile);
  await gate.mark(delivery);
  await gate.turn(delivery, () => {});
  expect(peer.tokens).toEqual(["Bearer planted-first", "Bearer planted-second", "Bearer planted-second"]);
});

test("each file that cannot be read again is a warning of its own", async () => {
  const [tlsCert, tlsKey] = [join(folder, "broken.pem"), join(folder, "broken.key")];
  copyFileSync(client.cert, tlsCert);
  copyFileSync(client.key, tlsKey);
  await using peer = await Peer.start({ pair, clientCa: ca.cert });
  await using gate = new Gate({ server: peer.address, tlsCa: ca.cert, tlsCert, tlsKey, tokenFile });
  await gate.mark(delivery);
  const emit = vi.spyOn(process, "emitWarning").mockImplementation(() => {});
  const now = performance.now.bind(performance);
  const clock = vi.spyOn(performance, "now").mockImplementation(() => now() + 2 * lookAgainMs);
  rmSync(tokenFile);
  rmSync(tlsKey);
  await gate.mark(delivery);
  await gate.mark(delivery);
  writeFileSync(tokenFile, "planted-first\n");
  await gate.mark(delivery);
  rmSync(tokenFile); // a second outage
  await gate.mark(delivery);
  const texts = emit.mock.calls.map(([text]) => String(text));
  emit.mockRestore();
  clock.mockRestore();
  const oldToken = expect.stringMatching(/^tokenFile: .*; the token that was read before stays in use$/);
  const oldPair = expect.stringMatching(/^tlsKey: .*; the certificates that were read before stay in use$/);
  expect(texts).toEqual([oldToken, oldPair, oldToken]);
  expect(peer.tokens).toEqual(Array(5).fill("Bearer planted-first"));
});

test("no token is sent unless one is set", async () => {
  await using peer = await Peer.start();
  await using gate = new Gate({ server: peer.address });
  await gate.mark(delivery);
  expect(peer.tokens).toEqual([undefined]);
});

test("a token to loopback passes no proxy", async () => {
  await using peer = await Peer.start();
  for (const name of ["grpc_proxy", "https_proxy", "http_proxy"]) vi.stubEnv(name, "http://127.0.0.1:9");
  vi.stubEnv("no_proxy", undefined);
  await using gate = new Gate({ server: peer.address, token: "planted", patience: "3s" });
  await gate.mark(delivery);
  expect(peer.tokens).toEqual(["Bearer planted"]);
});

test.each([
  [unknown, "UNAUTHENTICATED"],
  [{ code: grpc.status.PERMISSION_DENIED, details: "by a proxy" }, "PERMISSION_DENIED"],
  [denied("TEAM_DENIED"), "TEAM_DENIED"],
  [denied("ROLE_DENIED"), "ROLE_DENIED"],
])("a denied call is not repeated: %#", async (refusal, reason) => {
  await using peer = await Peer.start();
  peer.refusal = refusal;
  await using gate = new Gate({ server: peer.address, token: "planted", onUnavailable: "run" });
  const handler = vi.fn();
  for (const call of [() => gate.mark(delivery), () => gate.turn(delivery, handler)]) {
    const error = await errorOf(call());
    expect(error).toBeInstanceOf(Denied);
    expect(error).toMatchObject({ reason });
  }
  expect(handler).not.toHaveBeenCalled();
  expect(peer.tokens).toHaveLength(2);
});

test("a turn whose caller is denied is lost", async () => {
  await using peer = await Peer.start();
  await using gate = new Gate({ server: peer.address, token: "planted" });
  const error = await errorOf(
    gate.turn(delivery, async (turn) => {
      peer.endTurns(unknown);
      expect(await turn.lost).toBe("DENIED");
      turn.signal.throwIfAborted();
    }),
  );
  expect(error).toBeInstanceOf(TurnLost);
  expect(error).toMatchObject({ reason: "DENIED" });
  expect(peer.tokens).toHaveLength(1); // nothing is renewed, and no end sent
}, 20_000);

test("a turn outlives the token that it began with", async () => {
  await using peer = await Peer.start();
  await using gate = new Gate({ server: peer.address, tokenFile });
  const error = await errorOf(
    gate.turn(delivery, async (turn) => {
      writeFileSync(tokenFile, "planted-second");
      peer.endTurns(unknown);
      while (turn.keptBy === "stream") await sleep(5);
      turn.check();
      peer.refusal = unknown;
    }),
  );
  expect(error).toBeInstanceOf(Denied); // its end: the result is not stored
  expect(new Set(peer.tokens.slice(1))).toEqual(new Set(["Bearer planted-second"]));
}, 20_000);

describe("a client certificate that was exchanged", () => {
  let renewed: Pair;
  let options: GateOptions & { tlsCa: string; tlsCert: string; tlsKey: string };
  let peer: Peer;

  function put({ cert, key }: Pair): void {
    copyFileSync(cert, options.tlsCert);
    copyFileSync(key, options.tlsKey);
  }

  beforeAll(() => {
    renewed = ca.issue("renewed-in-use", forClient);
  });

  beforeEach(async () => {
    const own = mkdtempSync(join(folder, "exchanged-"));
    peer = await Peer.start({ pair, clientCa: ca.cert });
    options = {
      server: peer.address,
      tlsCa: join(own, "ca"),
      tlsCert: join(own, "cert"),
      tlsKey: join(own, "key"),
    };
    copyFileSync(ca.cert, options.tlsCa);
    put(client);
  });

  afterEach(() => peer[Symbol.asyncDispose]());

  // As when the old one expires: the server ends the stream, and the files have another one.
  test("a turn outlives the one that it began with", async () => {
    await using gate = new Gate(options);
    const outcome = await gate.turn(delivery, async (turn) => {
      await gate.mark(delivery);
      peer.unknown = [der(client.cert)];
      put(renewed);
      peer.endTurns(unknown);
      while (turn.keptBy === "stream" && turn.held) await sleep(5);
      turn.check();
      return turn.keptBy;
    });
    expect(outcome).toMatchObject({ kind: "ran", result: "renew" });
    const [old, fresh] = [der(client.cert), der(renewed.cert)];
    expect(peer.certificates).toEqual([old, old, fresh, fresh]);
  });

  async function expectLost(change: () => void): Promise<void> {
    await using gate = new Gate(options);
    const error = await errorOf(
      gate.turn(delivery, async (turn) => {
        change();
        peer.endTurns(unknown);
        expect(await turn.lost).toBe("DENIED");
        turn.signal.throwIfAborted();
      }),
    );
    expect(error).toBeInstanceOf(TurnLost);
    expect(error).toMatchObject({ reason: "DENIED" });
  }

  test("a turn is lost if the new one is refused too", async () => {
    await expectLost(() => {
      peer.unknown = [der(client.cert), der(renewed.cert)];
      put(renewed);
    });
    expect(peer.certificates).toEqual([der(client.cert), der(renewed.cert)]);
  });

  test("a turn is lost if there is no newer one", async () => {
    // Other CAs for the server are no other proof of the client.
    await expectLost(() => appendFileSync(options.tlsCa, "\n# again\n"));
    expect(peer.certificates).toEqual([der(client.cert)]);
  });

  // The connection is an old one, and the certificates were compared just now.
  test.each([
    ["call", 0],
    ["call", "10s"],
    ["turn", 0],
    ["turn", "10s"],
  ] as const)("a %s uses the new one at once, with a patience of %s", async (what, patience) => {
    await using gate = new Gate({ ...options, patience });
    await gate.turn(delivery, () => gate.mark(delivery));
    const [old, fresh] = [der(client.cert), der(renewed.cert)];
    peer.unknown = [old];
    put(renewed);
    peer.certificates.length = 0;
    if (what === "call") expect((await gate.mark(delivery)).first).toBe(true);
    else expect(await gate.turn(delivery, (turn) => turn.held)).toMatchObject({ result: true });
    expect(peer.certificates.slice(0, 2)).toEqual([old, fresh]);
  });
});

test("a call whose token was replaced meanwhile", async () => {
  await using peer = await Peer.start();
  await using gate = new Gate({ server: peer.address, tokenFile, patience: 0 });
  let number = 1;
  peer.onCall = () => {
    number += 1;
    writeFileSync(tokenFile, `planted-${number}`);
  };
  peer.unknown = ["Bearer planted-first"];
  expect((await gate.mark(delivery)).first).toBe(true);
  expect(peer.tokens).toEqual(["Bearer planted-first", "Bearer planted-2"]);
  // A file that changes with each read: one try at once, then as in an outage.
  peer.refusal = unknown;
  const error = await errorOf(gate.mark(delivery));
  expect(error).toBeInstanceOf(Unavailable);
  expect(error.message).toContain("was replaced");
  expect(peer.tokens.length).toBeGreaterThanOrEqual(4);
  expect(peer.tokens.length).toBeLessThan(12);
});

test("a file that cannot be used is said at once", async () => {
  await using gate = new Gate({ server: "https://localhost:1", tlsCa: join(folder, "none") });
  for (const call of [() => gate.mark(delivery), () => gate.turn(delivery, () => {})]) {
    const error = await errorOf(call());
    expect(error).toBeInstanceOf(Misconfigured);
    expect(error).toMatchObject({ option: "tlsCa" });
  }
});
