import { execFileSync } from "node:child_process";
import { X509Certificate } from "node:crypto";
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmdirSync,
  rmSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { inspect } from "node:util";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import {
  Access,
  type AccessOptions,
  lookAgainMs,
  lookSoonMs,
  maxFileBytes,
  Rotation,
} from "../../src/access.js";
import { CallError, Code } from "../../src/call-error.js";
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

function makePipe(path: string): void {
  execFileSync("mkfifo", [path]);
}

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
  ["HTTPS://gate:7411", "gate:7411", true],
  ["Http://gate:7411", "gate:7411", false],
  ["UNIX:/run/Oncegate.sock", "unix:/run/Oncegate.sock", false],
  ["[fe80::1%eth0]:7411", "[fe80::1%eth0]:7411", false],
])("the address %s", (server, target, isTls) => {
  expect(new Access({ server })).toMatchObject({ target, isTls });
});

test.each([
  "https://",
  "https://gate",
  "https://me:planted@gate:1",
  "http://gate:1/path",
  "https://:7411",
  ":7411",
  "gate",
  "gate:",
  "gate:0",
  "gate:65536",
  "::1:7411",
  "[::1]",
  "[127.0.0.1]:1",
  "[]:1",
  "https://gate:1,planted:1",
  "https:gate:1",
  "grpc://gate:1",
  "tcp://planted:1",
  "xds:///gate:1",
  "evil:1/localhost",
  "unix:",
  "unix-abstract:planted",
  "dns:///",
  " gate:1",
  "gate:1\n",
  "",
])("no address: %#", (server) => {
  expect(misconfigured(() => new Gate({ server })).option).toBe("server");
});

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
  "dns:///ipv4:127.0.0.1:1",
  "unix-abstract:1",
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
  "[::ffff:127.0.0.1]:1",
  "http://[::FFFF:7f09:909]:1",
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
  vi.stubEnv("ONCEGATE_CLIENT_CERT", "");
  expect(misconfigured(() => new Access({})).message).toContain("needs both");
});

describe.each([
  ["tlsCa", "ONCEGATE_TLS_CA"],
  ["tlsCert", "ONCEGATE_CLIENT_CERT"],
  ["tlsKey", "ONCEGATE_CLIENT_KEY"],
  ["tlsServerName", "ONCEGATE_TLS_SERVER_NAME"],
])("%s", (option, variable) => {
  test.each(["gate:1", "http://127.0.0.1:1", "unix:/run/oncegate.sock"])("needs TLS: %s", (server) => {
    const given = misconfigured(() => new Gate({ server, [option]: "a" }));
    expect(given.option).toBe(option);
    expect(given.message).toContain("the option needs TLS");
    vi.stubEnv(variable, "");
    expect(new Gate({ server })).toBeInstanceOf(Gate);
    vi.stubEnv(variable, "a");
    const set = misconfigured(() => new Gate({ server }));
    expect(set.option).toBe(option);
    expect(set.message).toContain(`${variable} needs TLS`);
  });
});

test.each(["server", "tlsCa", "tlsCert", "tlsKey", "tlsServerName", "token", "tokenFile"])(
  "an empty %s",
  (option) => {
    vi.stubEnv("ONCEGATE_SERVER", "https://gate:1");
    const error = misconfigured(() => new Gate({ [option]: "" }));
    expect(error.option).toBe(option);
    expect(error.message).toContain("it is empty");
    expect(new Gate({ [option]: undefined })).toBeInstanceOf(Gate); // as if it were left out
  },
);

test.each<[AccessOptions, string]>([
  [{ server: "https://gate:1", tlsCert: "a" }, "tlsKey"],
  [{ server: "https://gate:1", tlsKey: "a" }, "tlsCert"],
  [{ server: "https://gate:1", token: "a", tokenFile: "b" }, "token"],
  [{ server: "https://gate:1", token: "planted secret" }, "token"],
  [{ server: "https://gate:1", token: "planted\nsecret" }, "token"],
  [{ server: "https://gate:1", token: "plantedé" }, "token"],
])("options that do not fit: %#", (options, option) => {
  expect(misconfigured(() => new Gate(options)).option).toBe(option);
});

test("a token file is read for each call", () => {
  const warn = vi.fn();
  const access = new Access({ server: "https://gate:1", tokenFile }, warn);
  expect(access.token()).toBe("planted-first");
  writeFileSync(tokenFile, "  planted-second\n");
  expect(access.token()).toBe("planted-second");
  const link = `${tokenFile}-link`;
  const breaks = [
    () => writeFileSync(tokenFile, "\n"),
    () => writeFileSync(tokenFile, `a\n${" ".repeat(maxFileBytes)}`),
    () => {
      unlinkSync(tokenFile);
      makePipe(tokenFile);
    },
    () => {
      renameSync(tokenFile, link);
      symlinkSync(link, tokenFile);
    },
    () => {
      unlinkSync(tokenFile);
      mkdirSync(tokenFile);
    },
    () => rmdirSync(tokenFile),
  ];
  for (const outage of [1, 2]) {
    for (const breakIt of breaks) {
      breakIt();
      expect(access.token()).toBe("planted-second");
      expect(warn).toHaveBeenCalledTimes(outage); // not again before it ends
    }
    writeFileSync(tokenFile, "planted-second");
    expect(access.token()).toBe("planted-second");
  }
  expect(String(warn.mock.calls[0])).toContain("tokenFile: cannot use the file");
  expect(inspect(warn.mock.calls)).not.toContain("planted");
});

// Nothing waits for the writer of a pipe, and nothing without end is read.
test.each(["tokenFile", "tlsCa"])("a %s that is no file", (option) => {
  const own = mkdtempSync(join(folder, "files-"));
  const [pipe, link, large] = [join(own, "pipe"), join(own, "link"), join(own, "large")];
  makePipe(pipe);
  symlinkSync(pipe, link);
  writeFileSync(large, "");
  truncateSync(large, maxFileBytes + 1);
  const use = (path: string) => new Access({ server: "https://gate:1", [option]: path }).credentials(0);
  for (const [path, problem] of [
    [pipe, "not a regular file"],
    [link, "not a regular file"],
    ["/dev/zero", "not a regular file"],
    [own, "not a regular file"],
    [large, "larger than 1 MiB"],
  ] as const) {
    const error = misconfigured(() => use(path));
    expect(error.option).toBe(option);
    expect(error.message).toContain(problem);
  }
  unlinkSync(link);
  const content = option === "tlsCa" ? readFileSync(ca.cert) : Buffer.from("planted");
  writeFileSync(large, Buffer.concat([content, Buffer.alloc(maxFileBytes - content.length, "\n")]));
  symlinkSync(large, link);
  expect(use(link)).toBeDefined();
});

test.each([undefined, "", " \n", "planted two", "planted\0", "\ufeffplanted"])(
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
  const glued = join(folder, "glued"); // as `cat` joins files without a last newline
  writeFileSync(glued, pem.trim() + pem);
  const marked = join(folder, "marked"); // a byte order mark, as in a file of Windows
  writeFileSync(marked, `${pem}\ufeff${pem}`);
  const wrong: [AccessOptions, string][] = [
    [{ tlsCa: join(folder, "none") }, "tlsCa"],
    [{ tlsCa: folder }, "tlsCa"],
    [{ tlsCa: garbage }, "tlsCa"],
    [{ tlsCa: der }, "tlsCa"],
    [{ tlsCa: cut }, "tlsCa"],
    [{ tlsCa: glued }, "tlsCa"],
    [{ tlsCa: marked }, "tlsCa"],
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
  const pem = readFileSync(ca.pair.cert, "utf8");
  const windows = pem.replaceAll("\n", " \r\n").trim();
  writeFileSync(commented, `# Zertifizierungsstelle für Bots\n${pem}-- the same --\n${windows}`);
  const access = new Access({ server: "https://gate:1", tlsCa: commented });
  expect(access.certificates().ca).toBeDefined();
});

test("a pair is exchanged as a whole", () => {
  const [tlsCert, tlsKey] = [join(folder, "rotated.pem"), join(folder, "rotated.key")];
  copyFileSync(client.cert, tlsCert);
  copyFileSync(client.key, tlsKey);
  const warn = vi.fn();
  const access = new Access({ server: "https://gate:1", tlsCert, tlsKey });
  const rotation = new Rotation((used) => access.certificates(used), warn);
  const first = rotation.certificates(0);
  const renewed = ca.issue("renewed", forClient);
  copyFileSync(renewed.cert, tlsCert);
  for (const look of [1, 2, 3]) expect(rotation.certificates(look * lookAgainMs)).toBe(first); // an old key
  expect(warn).toHaveBeenCalledTimes(1); // one for the outage
  copyFileSync(renewed.key, tlsKey);
  expect(rotation.certificates(3.9 * lookAgainMs)).toBe(first); // it does not look yet
  const second = rotation.certificates(4 * lookAgainMs);
  expect(second.cert).toEqual(readFileSync(renewed.cert));
  expect(rotation.certificates(5 * lookAgainMs)).toBe(second);
  copyFileSync(client.key, tlsKey);
  expect(rotation.certificates(6 * lookAgainMs)).toBe(second);
  expect(warn).toHaveBeenCalledTimes(2); // the next one
  expect(String(warn.mock.lastCall)).toContain("the certificates that were read before stay in use");
});

test("certificates that have not changed are not checked again", () => {
  const tlsCa = join(folder, "unchecked");
  copyFileSync(ca.cert, tlsCa);
  const access = new Access({ server: "https://gate:1", tlsCa });
  const seen: unknown[] = [];
  const rotation = new Rotation((used) => {
    seen.push(used);
    return access.certificates(used);
  }, vi.fn());
  const first = rotation.certificates(0);
  expect(rotation.certificates(lookAgainMs)).toBe(first);
  expect(seen).toEqual([undefined, first]);
  writeFileSync(tlsCa, "no certificate");
  const unchecked = { ca: readFileSync(tlsCa), cert: undefined, key: undefined };
  expect(access.certificates(unchecked)).toBe(unchecked);
  expect(misconfigured(() => access.certificates(first)).option).toBe("tlsCa");
});

test("when the certificates are compared with their files", () => {
  const tlsCa = join(folder, "compared.pem");
  const otherCa = new Authority(folder, "compared-other");
  const access = new Access({ server: "https://gate:1", tlsCa });
  const used = (now: number, atOnce = false) => access.credentials(now, atOnce).certificates?.ca;
  copyFileSync(ca.cert, tlsCa);
  const [first, second] = [readFileSync(ca.cert), readFileSync(otherCa.cert)];
  expect(used(0)).toEqual(first);
  copyFileSync(otherCa.cert, tlsCa);
  expect(used(lookAgainMs - 100)).toEqual(first);
  expect(used(lookAgainMs - 100, true)).toEqual(second);
  copyFileSync(ca.cert, tlsCa);
  const now = lookAgainMs + lookSoonMs;
  expect(used(now)).toEqual(second);
  const away = (reason: string) => new CallError(Code.UNAVAILABLE, "away", { reason });
  access.credentials(now).judge(away("STORE_UNAVAILABLE"), now);
  expect(used(now)).toEqual(second);
  access.credentials(now).judge(away(""), now);
  expect(used(now)).toEqual(first);
  copyFileSync(otherCa.cert, tlsCa);
  expect(used(now + lookSoonMs)).toEqual(first); // once for a failure
});
