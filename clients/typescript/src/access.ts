import { X509Certificate } from "node:crypto";
import { closeSync, constants, fstatSync, openSync, readSync } from "node:fs";
import { createSecureContext } from "node:tls";
import { isLocal, parseAddress } from "./address.js";
import { CallError, Code } from "./call-error.js";
import { describe } from "./describe.js";
import { Misconfigured } from "./errors.js";

/** How a gate reaches its server. Files are PEM, and read again: what they hold may be exchanged. */
export interface AccessOptions {
  /**
   * `HOST:PORT`, `https://HOST:PORT` for TLS, or `unix:/path`. Default: `ONCEGATE_SERVER`, else
   * 127.0.0.1:7411.
   */
  readonly server?: string | undefined;
  /** The CAs that the server's certificate may come from. Default: `ONCEGATE_TLS_CA`, else Node's own list. */
  readonly tlsCa?: string | undefined;
  /** The client's certificate, with its intermediates. Default: `ONCEGATE_CLIENT_CERT`. */
  readonly tlsCert?: string | undefined;
  /** Its private key, not encrypted. Default: `ONCEGATE_CLIENT_KEY`. */
  readonly tlsKey?: string | undefined;
  /**
   * The name that the server's certificate must be valid for. Default: `ONCEGATE_TLS_SERVER_NAME`, else
   * that of the address.
   */
  readonly tlsServerName?: string | undefined;
  /** A token, sent with each call. */
  readonly token?: string | undefined;
  /** A file with the token, read for each call. Default: `ONCEGATE_TOKEN_FILE`. */
  readonly tokenFile?: string | undefined;
  /** Whether a token may be sent in plaintext to another host. */
  readonly insecure?: boolean | undefined;
}

/** The variables of a process. */
export type Environment = Readonly<Record<string, string | undefined>>;

/** Reports a file that cannot be used any more. */
export type Warn = (problem: string) => void;

/** The contents of the files. */
export interface Certificates {
  readonly ca: Buffer | undefined;
  readonly cert: Buffer | undefined;
  readonly key: Buffer | undefined;
}

type FileOption = "tlsCa" | "tlsCert" | "tlsKey" | "tokenFile";

interface File {
  readonly option: FileOption;
  readonly path: string;
}

/** As the command line has them: `ONCEGATE_TLS_CERT` is the server's own. */
const variables = {
  tlsCa: "ONCEGATE_TLS_CA",
  tlsCert: "ONCEGATE_CLIENT_CERT",
  tlsKey: "ONCEGATE_CLIENT_KEY",
  tlsServerName: "ONCEGATE_TLS_SERVER_NAME",
  tokenFile: "ONCEGATE_TOKEN_FILE",
} as const;

const tlsOptions = ["tlsCa", "tlsCert", "tlsKey", "tlsServerName"] as const;

export const maxFileBytes = 1024 * 1024;

/** Milliseconds between two looks at the certificates, while calls are made. */
export const lookAgainMs = 10_000;

/** The same after a connection has failed: the server may not accept the old ones any more. */
export const lookSoonMs = 1000;

/**
 * The settings of a gate. They are read once, their files again and again. All methods throw
 * Misconfigured if a setting or its file cannot be used.
 */
export class Access {
  /** gRPC's target. */
  readonly target: string;
  readonly isTls: boolean;
  readonly serverName: string | undefined;
  /** Whether an HTTP proxy of the environment would carry the token to another host. */
  readonly avoidsProxy: boolean;
  readonly #ca: File | undefined;
  readonly #cert: File | undefined;
  readonly #key: File | undefined;
  readonly #rotation: Rotation;
  readonly #tokenFile: File | undefined;
  readonly #tokenOutage: Outage;
  #token: string | undefined;

  /**
   * @param warn is called if a file cannot be used any more
   * @param everyMs how often the certificates are compared with their files
   */
  constructor(
    options: AccessOptions,
    warn: Warn = () => {},
    env: Environment = process.env,
    everyMs = lookAgainMs,
  ) {
    const address = textOf(options, "server") ?? (env.ONCEGATE_SERVER || "127.0.0.1:7411");
    [this.target, this.isTls] = parseAddress(address);
    if (this.isTls) {
      this.serverName = textOf(options, "tlsServerName") ?? variable(env, "tlsServerName");
      const [cert, key] = [toFile(options, "tlsCert"), toFile(options, "tlsKey")];
      const isOwnPair = cert !== undefined || key !== undefined;
      this.#ca = toFile(options, "tlsCa") ?? variableFile(env, "tlsCa");
      this.#cert = isOwnPair ? cert : variableFile(env, "tlsCert");
      this.#key = isOwnPair ? key : variableFile(env, "tlsKey");
    } else {
      for (const option of tlsOptions) refuseWithoutTls(this.target, options, env, option);
    }
    if (!this.#cert !== !this.#key)
      throw new Misconfigured(
        this.#cert ? "tlsKey" : "tlsCert",
        "a client certificate needs both tlsCert and tlsKey",
      );
    this.#rotation = new Rotation((used) => this.certificates(used), warn, everyMs);
    this.#tokenOutage = new Outage(warn, "the token that was read before stays in use");
    const token = textOf(options, "token");
    const tokenFile = toFile(options, "tokenFile");
    if (token === undefined) this.#tokenFile = tokenFile ?? variableFile(env, "tokenFile");
    else if (tokenFile) throw new Misconfigured("token", "set either token or tokenFile");
    else this.#token = toToken(token.trim(), "token");
    const hasToken = this.#token !== undefined || this.#tokenFile !== undefined;
    const isPlain = hasToken && !this.isTls;
    const isHere = isLocal(this.target);
    if (isPlain && !isHere && !options.insecure)
      throw new Misconfigured(
        "server",
        `a token must not be sent in plaintext to ${this.target}; use https://, or set insecure: true`,
      );
    this.avoidsProxy = isPlain && isHere;
  }

  /** The token for the next call. While its file cannot be used, the last one stays in use. */
  token(): string | undefined {
    if (!this.#tokenFile) return this.#token;
    try {
      this.#token = toToken(readFile(this.#tokenFile).toString("latin1").trim(), "tokenFile");
      this.#tokenOutage.over();
    } catch (error) {
      if (this.#token === undefined || !(error instanceof Misconfigured)) throw error;
      this.#tokenOutage.warn(error);
    }
    return this.#token;
  }

  /** For the next call or stream. `atOnce`: after a look at the files of the certificates. */
  credentials(now: number, atOnce = false): Credentials {
    const token = this.token();
    return new Credentials(this, token, this.isTls ? this.#rotation.certificates(now, atOnce) : undefined);
  }

  /** A call has failed, maybe because the server does not accept the certificates any more. */
  connectionFailed(): void {
    this.#rotation.lookSoon();
  }

  /** What the files hold. If it is what is `used`, it was checked before. */
  certificates(used?: Certificates): Certificates {
    const [ca, cert, key] = [this.#ca, this.#cert, this.#key].map((file) => file && readFile(file));
    const found = { ca, cert, key };
    // A check of all public CAs holds the event loop up for 0.1 s.
    if (used && isSame(found, used, "ca", "cert", "key")) return used;
    if (this.#ca && ca) {
      // Each of them: TLS would leave out what it cannot read, without a word.
      const certificates = ca.toString("latin1").match(pemCertificate) ?? [""];
      try {
        for (const certificate of certificates) new X509Certificate(certificate);
      } catch {
        throw new Misconfigured("tlsCa", `${this.#ca.path} holds no certificate in PEM, or a damaged one`);
      }
    }
    if (cert && key) {
      try {
        createSecureContext({ cert, key });
      } catch (error) {
        const files = `${this.#cert?.path} and ${this.#key?.path}`;
        throw new Misconfigured("tlsCert", `${files} are not a certificate and its key: ${describe(error)}`);
      }
    }
    return found;
  }
}

/** With the rest of the lines of its markers: TLS finds no marker that shares a line with something else. */
const pemCertificate = /^.*-----BEGIN CERTIFICATE-----[^-]*(?:-----END CERTIFICATE-----.*)?/gm;

/** What one call or stream proves itself by. */
export class Credentials {
  readonly certificates: Certificates | undefined;
  readonly #access: Access;
  readonly #token: string | undefined;

  constructor(access: Access, token: string | undefined, certificates: Certificates | undefined) {
    this.#access = access;
    this.#token = token;
    this.certificates = certificates;
  }

  /** What is sent with the call in `authorization`. */
  get authorization(): string | undefined {
    return this.#token === undefined ? undefined : `Bearer ${this.#token}`;
  }

  /**
   * What its failure means. UNAUTHENTICATED is final only with the newest token and client certificate: with
   * older ones the call is worth another try.
   */
  judge(error: CallError, now: number): CallError {
    const isBroken = error.code === Code.UNAVAILABLE || error.code === Code.DEADLINE_EXCEEDED;
    if (isBroken && error.reason === "") this.#access.connectionFailed();
    if (error.code !== Code.UNAUTHENTICATED) return error;
    const newest = this.#access.credentials(now, true);
    if (newest.#token === this.#token && isSame(newest.certificates, this.certificates, "cert", "key"))
      return error;
    return new CallError(Code.UNAVAILABLE, "the token or client certificate was replaced", {
      isOutdated: true,
    });
  }
}

/** Warns of files that cannot be used: once for each, until they can be used again. */
class Outage {
  readonly #warn: Warn;
  readonly #consequence: string;
  readonly #warned = new Set<string>();

  constructor(warn: Warn, consequence: string) {
    this.#warn = warn;
    this.#consequence = consequence;
  }

  /** They cannot be used. */
  warn({ option, message }: Misconfigured): void {
    if (this.#warned.has(option)) return;
    this.#warned.add(option);
    this.#warn(`${message}; ${this.#consequence}`);
  }

  /** They can be used. */
  over(): void {
    this.#warned.clear();
  }
}

/** The certificates that a gate uses. */
export class Rotation {
  readonly #read: (used: Certificates | undefined) => Certificates;
  readonly #everyMs: number;
  readonly #outage: Outage;
  #used: Certificates | undefined;
  #lookedAt = 0;
  #isHurried = false;

  constructor(read: (used: Certificates | undefined) => Certificates, warn: Warn, everyMs = lookAgainMs) {
    this.#read = read;
    this.#everyMs = everyMs;
    this.#outage = new Outage(warn, "the certificates that were read before stay in use");
  }

  /** For the next call. Files that cannot be used now leave the last ones in use. */
  certificates(now: number, atOnce = false): Certificates {
    const pauseMs = this.#isHurried ? Math.min(lookSoonMs, this.#everyMs) : this.#everyMs;
    if (this.#used && !atOnce && now - this.#lookedAt < pauseMs) return this.#used;
    this.#lookedAt = now;
    this.#isHurried = false;
    try {
      this.#used = this.#read(this.#used);
      this.#outage.over();
    } catch (error) {
      if (!this.#used || !(error instanceof Misconfigured)) throw error;
      this.#outage.warn(error);
    }
    return this.#used;
  }

  /** The next look comes earlier. */
  lookSoon(): void {
    this.#isHurried = true;
  }
}

function isSame(
  one: Certificates | undefined,
  other: Certificates | undefined,
  ...files: readonly (keyof Certificates)[]
): boolean {
  return files.every((name) => {
    const [a, b] = [one?.[name], other?.[name]];
    return a && b ? a.equals(b) : a === b;
  });
}

/** A setting. An empty one is a mistake, such as a variable that is not set. */
function textOf(options: AccessOptions, option: keyof typeof variables | "server" | "token") {
  const text = options[option] ?? undefined;
  if (text === "") throw new Misconfigured(option, "it is empty; set it, or leave it out");
  return text;
}

function variable(env: Environment, option: keyof typeof variables): string | undefined {
  return env[variables[option]] || undefined;
}

/** A setting that has no effect is a mistake, also one of the environment of a whole pod. */
function refuseWithoutTls(
  target: string,
  options: AccessOptions,
  env: Environment,
  option: (typeof tlsOptions)[number],
): void {
  const isOption = textOf(options, option) !== undefined;
  if (!isOption && variable(env, option) === undefined) return;
  const setting = isOption ? "the option" : variables[option];
  throw new Misconfigured(
    option,
    `${setting} needs TLS, and the server ${target} has none; use https://HOST:PORT`,
  );
}

function toFile(options: AccessOptions, option: FileOption): File | undefined {
  const path = textOf(options, option);
  return path === undefined ? undefined : { option, path };
}

function variableFile(env: Environment, option: FileOption): File | undefined {
  const path = variable(env, option);
  return path === undefined ? undefined : { option, path };
}

function readFile({ option, path }: File): Buffer {
  let content: Buffer | string;
  try {
    content = contentOf(path);
  } catch (error) {
    content = describe(error);
  }
  if (typeof content === "string") throw new Misconfigured(option, `cannot use the file ${path}: ${content}`);
  if (content.toString("latin1").trim() === "")
    throw new Misconfigured(option, `cannot use the file ${path}: it is empty`);
  return content;
}

/** What a regular file holds, or why it cannot be used. */
function contentOf(path: string): Buffer | string {
  // A pipe without a writer would keep this waiting. Windows has no such flag.
  const file = openSync(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
  try {
    if (!fstatSync(file).isFile()) return "it is not a regular file";
    const chunks: Buffer[] = [];
    for (let left = maxFileBytes; left >= 0; ) {
      const chunk = Buffer.allocUnsafe(16 * 1024);
      const length = readSync(file, chunk);
      if (length === 0) return Buffer.concat(chunks);
      chunks.push(chunk.subarray(0, length));
      left -= length;
    }
    return "it is larger than 1 MiB";
  } finally {
    closeSync(file);
  }
}

function toToken(value: string, option: string): string {
  if (!/^[!-~]{1,8192}$/.test(value))
    throw new Misconfigured(option, "this is not one token, of at most 8 KiB");
  return value;
}
