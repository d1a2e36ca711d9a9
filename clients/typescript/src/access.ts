import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { BlockList, isIP } from "node:net";
import { createSecureContext } from "node:tls";
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

/** Reports a file that cannot be used now, by the option that names it. */
export type Warn = (option: string, problem: string) => void;

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
const environment = {
  tlsCa: "ONCEGATE_TLS_CA",
  tlsCert: "ONCEGATE_CLIENT_CERT",
  tlsKey: "ONCEGATE_CLIENT_KEY",
  tokenFile: "ONCEGATE_TOKEN_FILE",
} as const;

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
  readonly #tokenFile: File | undefined;
  readonly #warn: Warn;
  #token: string | undefined;

  /** @param warn is called for each token that is an old one */
  constructor(options: AccessOptions, warn: Warn = () => {}) {
    this.#warn = warn;
    const address = options.server || process.env.ONCEGATE_SERVER || "127.0.0.1:7411";
    [this.target, this.isTls] = toTarget(address);
    if (this.isTls) {
      this.serverName = options.tlsServerName ?? (process.env.ONCEGATE_TLS_SERVER_NAME || undefined);
      const hasOwnPair = Boolean(options.tlsCert || options.tlsKey);
      this.#ca = toFile(options, "tlsCa");
      this.#cert = toFile(options, "tlsCert", !hasOwnPair);
      this.#key = toFile(options, "tlsKey", !hasOwnPair);
    } else {
      for (const option of ["tlsCa", "tlsCert", "tlsKey", "tlsServerName"] as const) {
        if (options[option] !== undefined)
          throw new Misconfigured(option, `the server ${this.target} has no TLS; use https://`);
      }
    }
    if (!this.#cert !== !this.#key)
      throw new Misconfigured(
        this.#cert ? "tlsKey" : "tlsCert",
        "a client certificate needs both tlsCert and tlsKey",
      );
    if (options.token === undefined) this.#tokenFile = toFile(options, "tokenFile");
    else if (options.tokenFile) throw new Misconfigured("token", "set either token or tokenFile");
    else this.#token = toToken(options.token.trim(), "token");
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
      this.#token = toToken(readFile(this.#tokenFile).toString().trim(), "tokenFile");
    } catch (error) {
      if (this.#token === undefined || !(error instanceof Misconfigured)) throw error;
      this.#warn(error.option, `${error.message}; the token that was read before stays in use`);
    }
    return this.#token;
  }

  /** Whether the next call would have another token than that one. */
  hasReplaced(token: string | undefined): boolean {
    return this.#tokenFile !== undefined && this.token() !== token;
  }

  /** What the files hold. */
  certificates(): Certificates {
    const [ca, cert, key] = [this.#ca, this.#cert, this.#key].map((file) => file && readFile(file));
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
    return { ca, cert, key };
  }
}

const pemCertificate = /-----BEGIN CERTIFICATE-----[^-]*(?:-----END CERTIFICATE-----)?/g;

/** Milliseconds between two looks at the certificates, while calls are made. */
export const lookAgainMs = 10_000;

/** The certificates that the channels of one gate are made with. */
export class Rotation {
  readonly #access: Access;
  readonly #warn: Warn;
  readonly #lookAgainMs: number;
  #used: Certificates | undefined;
  #lookedAt = Number.NEGATIVE_INFINITY;

  constructor(access: Access, warn: Warn, everyMs = lookAgainMs) {
    this.#access = access;
    this.#warn = warn;
    this.#lookAgainMs = everyMs;
  }

  /** For a new channel. */
  certificates(): Certificates {
    this.#used ??= this.#access.certificates();
    return this.#used;
  }

  /** Whether the files hold others: then a new channel is needed. Files that cannot be used change nothing. */
  hasChanged(now: number): boolean {
    if (!this.#used || now - this.#lookedAt < this.#lookAgainMs) return false;
    this.#lookedAt = now;
    try {
      const found = this.#access.certificates();
      if (isSame(found, this.#used)) return false;
      this.#used = found;
      return true;
    } catch (error) {
      if (!(error instanceof Misconfigured)) throw error;
      this.#warn(error.option, `${error.message}; the certificates that were read before stay in use`);
      return false;
    }
  }
}

function isSame(one: Certificates, other: Certificates): boolean {
  return (["ca", "cert", "key"] as const).every((name) => {
    const [a, b] = [one[name], other[name]];
    return a && b ? a.equals(b) : a === b;
  });
}

function toFile(options: AccessOptions, option: FileOption, fromEnvironment = true): File | undefined {
  const path = options[option] || (fromEnvironment ? process.env[environment[option]] : undefined);
  return path ? { option, path } : undefined;
}

function readFile({ option, path }: File): Buffer {
  let content: Buffer;
  try {
    content = readFileSync(path);
  } catch (error) {
    throw new Misconfigured(option, `cannot use the file ${path}: ${describe(error)}`);
  }
  if (content.toString("latin1").trim() === "")
    throw new Misconfigured(option, `cannot use the file ${path}: it is empty`);
  return content;
}

function toToken(value: string, option: string): string {
  if (!/^[!-~]{1,8192}$/.test(value))
    throw new Misconfigured(option, "this is not one token, of at most 8 KiB");
  return value;
}

/** gRPC's target, and whether it is reached over TLS. */
function toTarget(address: string): [target: string, isTls: boolean] {
  const [, scheme, rest = ""] = /^(https?):\/\/(.*)$/s.exec(address) ?? [];
  if (scheme === undefined) return [address, false];
  const host = rest.replace(/\/+$/, "");
  // Not shown: it may hold a password.
  if (!/^[^\s/@?#]+:\d+$/.test(host))
    throw new Misconfigured("server", `the server must be ${scheme}://HOST:PORT`);
  return [host, scheme === "https"];
}

const loopback = new BlockList();
loopback.addSubnet("127.0.0.0", 8, "ipv4");
loopback.addAddress("::1", "ipv6");

/** Whether what is sent in plaintext stays on this host. */
function isLocal(target: string): boolean {
  if (/^unix(-abstract)?:/.test(target)) return true;
  return target
    .replace(/^(dns:\/\/\/|dns:|ipv4:|ipv6:)/, "")
    .split(",")
    .every((address) => isLoopback(hostOf(address)));
}

function hostOf(address: string): string {
  const bracketed = /^\[([^\]]*)\]/.exec(address)?.[1];
  if (bracketed !== undefined) return bracketed;
  return address.split(":").length > 2 ? address : (address.split(":")[0] ?? "");
}

function isLoopback(host: string): boolean {
  const version = isIP(host);
  if (version === 0) return host.toLowerCase() === "localhost";
  return loopback.check(host, version === 4 ? "ipv4" : "ipv6");
}
