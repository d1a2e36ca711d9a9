import { X509Certificate } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, unlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { inspect } from "node:util";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { Access, type AccessOptions, lookAgainMs, Rotation } from "../../src/access.js";
import { Gate, Misconfigured } from "../../src/index.js";
import { Authority, forClient, type Pair } from "./certificates.js";

let folder: string;
let ca: Authority;
let client: Pair;
let tokenFile: string;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "oncegate-access-"));
  ca = new Authority(folder);
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

function misconfigured(make: () => unknown): Misconfigured {
  try {
    make();
  } catch (error) {
    expect(error).toBeInstanceOf(Misconfigured);
    expect(inspect(error)).not.toContain("planted");
    return error as Misconfigured;
  }
  return expect.unreachable();
}

test.each([
  ["gate:7411", "gate:7411", false],
  ["http://gate:7411/", "gate:7411", false],
  ["https://gate:7411", "gate:7411", true],
  ["https://[::1]:7411/", "[::1]:7411", true],
  ["unix:/run/oncegate.sock", "unix:/run/oncegate.sock", false],
  ["dns:///gate:7411", "dns:///gate:7411", false],
])("the address %s", (server, target, isTls) => {
  expect(new Access({ server })).toMatchObject({ target, isTls });
});

test.each(["https://", "https://gate", "https://me:planted@gate:1", "http://gate:1/path"])(
  "no address: %#",
  (server) => {
    expect(misconfigured(() => new Gate({ server })).option).toBe("server");
  },
);

describe.each([
  "gate:1",
  "10.0.0.1:1",
  "0.0.0.0:1",
  "[::]:1",
  "http://gate:1",
  "dns:///gate:1",
  "localhost.evil:1",
  "127.0.0.1.evil:1",
  "ipv4:127.0.0.1:1,10.0.0.1:1",
  "dns://10.0.0.1/localhost:1",
  "xds:///localhost:1",
  "evil:1/localhost",
  "[::ffff:10.0.0.1]:1",
])("a plaintext server %s", (server) => {
  test("gets no token, unless it is allowed to", () => {
    vi.stubEnv("ONCEGATE_TOKEN_FILE", tokenFile);
    for (const options of [{ token: "planted" }, { tokenFile }, {}]) {
      expect(misconfigured(() => new Gate({ server, ...options })).message).toContain("plaintext");
      expect(new Gate({ server, ...options, insecure: true })).toBeInstanceOf(Gate);
    }
  });
});

test.each([
  "localhost:1",
  "127.0.0.1:1",
  "127.9.9.9:1",
  "[::1]:1",
  "http://LOCALHOST:1",
  "dns:///localhost:1",
  "ipv4:127.0.0.1:1,127.0.0.2:1",
  "ipv6:[::1]:1",
  "unix:/run/oncegate.sock",
  "unix:///run/oncegate.sock",
  "https://gate:1",
])("a token may be sent to %s", (server) => {
  const access = new Access({ server, token: "planted" });
  expect(access.token()).toBe("planted");
  expect(access.avoidsProxy).toBe(server !== "https://gate:1");
});

test("the environment", () => {
  vi.stubEnv("ONCEGATE_SERVER", "https://gate:7411");
  vi.stubEnv("ONCEGATE_TOKEN_FILE", tokenFile);
  vi.stubEnv("ONCEGATE_TLS_SERVER_NAME", "gate.test");
  vi.stubEnv("ONCEGATE_CLIENT_CERT", client.cert);
  vi.stubEnv("ONCEGATE_CLIENT_KEY", client.key);
  const access = new Access({});
  expect(access).toMatchObject({ isTls: true, serverName: "gate.test" });
  expect(access.token()).toBe("planted-first");
  expect(access.certificates().cert?.toString()).toContain("BEGIN CERTIFICATE");
  expect(new Access({ token: "own" }).token()).toBe("own");
  // They are for TLS: another server of the same process needs none.
  expect(new Access({ server: "unix:/run/oncegate.sock" }).isTls).toBe(false);
  vi.stubEnv("ONCEGATE_CLIENT_CERT", "");
  expect(misconfigured(() => new Access({})).message).toContain("needs both");
});

test.each<[AccessOptions, string]>([
  [{ server: "https://gate:1", tlsCert: "a" }, "tlsKey"],
  [{ server: "https://gate:1", tlsKey: "a" }, "tlsCert"],
  [{ server: "gate:1", tlsCa: "a" }, "tlsCa"],
  [{ server: "gate:1", tlsServerName: "a" }, "tlsServerName"],
  [{ server: "https://gate:1", token: "a", tokenFile: "b" }, "token"],
  [{ server: "https://gate:1", token: "" }, "token"],
  [{ server: "https://gate:1", token: "planted secret" }, "token"],
  [{ server: "https://gate:1", token: "planted\nsecret" }, "token"],
  [{ server: "https://gate:1", token: "plantedé" }, "token"],
])("options that do not fit: %#", (options, option) => {
  expect(misconfigured(() => new Gate(options)).option).toBe(option);
});

test("a token file is read for each call", () => {
  const warn = vi.fn();
  const access = new Access({ server: "https://gate:1", tokenFile }, warn);
  const first = access.token();
  expect(access.hasReplaced(first)).toBe(false);
  writeFileSync(tokenFile, "  planted-second\n");
  expect(access.hasReplaced(first)).toBe(true);
  expect(access.token()).toBe("planted-second");
  const breaks = [
    () => writeFileSync(tokenFile, "\n"),
    () => unlinkSync(tokenFile),
    () => mkdirSync(tokenFile),
  ];
  for (const breakIt of breaks) {
    breakIt();
    expect(access.token()).toBe("planted-second");
  }
  expect(warn).toHaveBeenCalledTimes(3);
  expect(inspect(warn.mock.calls)).not.toContain("planted");
});

test.each([undefined, "", " \n", "planted two", "planted\0"])(
  "a token file that never held one: %#",
  (text) => {
    unlinkSync(tokenFile);
    if (text !== undefined) writeFileSync(tokenFile, text);
    const access = new Access({ server: "https://gate:1", tokenFile });
    expect(misconfigured(() => access.token()).option).toBe("tokenFile");
  },
);

test("a token is not shown", () => {
  const gate = new Gate({ server: "https://gate:1", token: "planted" });
  const access = new Access({ server: "https://gate:1", token: "planted" });
  const options = { depth: 20, showHidden: true };
  expect(inspect(gate, options) + inspect(access, options)).not.toContain("planted");
  expect(inspect(gate.internals, options) + JSON.stringify(access)).not.toContain("planted");
});

test("files that hold no certificate", () => {
  const garbage = join(folder, "garbage");
  writeFileSync(garbage, "hello");
  const pem = readFileSync(ca.pair.cert, "utf8");
  const der = join(folder, "der");
  writeFileSync(der, new X509Certificate(pem).raw);
  const cut = join(folder, "cut");
  writeFileSync(cut, `${pem}\n${pem.slice(0, pem.length / 2)}`);
  const wrong: [AccessOptions, string][] = [
    [{ tlsCa: join(folder, "none") }, "tlsCa"],
    [{ tlsCa: folder }, "tlsCa"],
    [{ tlsCa: garbage }, "tlsCa"],
    [{ tlsCa: der }, "tlsCa"],
    [{ tlsCa: cut }, "tlsCa"],
    [{ tlsCert: client.cert, tlsKey: ca.pair.key }, "tlsCert"],
    [{ tlsCert: garbage, tlsKey: client.key }, "tlsCert"],
  ];
  for (const [options, option] of wrong) {
    const access = new Access({ server: "https://gate:1", ...options });
    expect(misconfigured(() => access.certificates()).option).toBe(option);
  }
});

test("a certificate with a comment", () => {
  const commented = join(folder, "commented");
  writeFileSync(commented, `# Zertifizierungsstelle für Bots\n${readFileSync(ca.pair.cert, "utf8")}`);
  const access = new Access({ server: "https://gate:1", tlsCa: commented });
  expect(access.certificates().ca).toBeDefined();
});

test("a pair is exchanged as a whole", async () => {
  const { copyFileSync } = await import("node:fs");
  const [tlsCert, tlsKey] = [join(folder, "rotated.pem"), join(folder, "rotated.key")];
  copyFileSync(client.cert, tlsCert);
  copyFileSync(client.key, tlsKey);
  const warn = vi.fn();
  const rotation = new Rotation(new Access({ server: "https://gate:1", tlsCert, tlsKey }), warn);
  const first = rotation.certificates();
  const renewed = ca.issue("renewed", forClient);
  copyFileSync(renewed.cert, tlsCert);
  expect(rotation.hasChanged(2 * lookAgainMs)).toBe(false); // the key is the old one
  expect(warn).toHaveBeenCalledOnce();
  expect(rotation.certificates()).toBe(first);
  copyFileSync(renewed.key, tlsKey);
  expect(rotation.hasChanged(2.5 * lookAgainMs)).toBe(false); // it has looked only now
  expect(rotation.hasChanged(3 * lookAgainMs)).toBe(true);
  expect(rotation.certificates()).not.toBe(first);
  expect(rotation.hasChanged(4 * lookAgainMs)).toBe(false);
});
