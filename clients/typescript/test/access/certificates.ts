import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** The files of a certificate and its key. */
export interface Pair {
  readonly cert: string;
  readonly key: string;
}

export const forServer = "subjectAltName=DNS:localhost,IP:127.0.0.1";
export const forClient = "subjectAltName=URI:spiffe://test/bot\nextendedKeyUsage=clientAuth";

/** A CA of a test, made by the openssl command line in a folder of its own. */
export class Authority {
  readonly pair: Pair;
  readonly #folder: string;

  constructor(folder: string, name = "ca") {
    this.#folder = folder;
    this.pair = this.#pairOf(name);
    openssl("req", "-x509", ...request(this.pair, name), "-days", "2", "-out", this.pair.cert);
  }

  get cert(): string {
    return this.pair.cert;
  }

  /** A certificate of this CA, valid for two days. */
  issue(name: string, extensions: string): Pair {
    const pair = this.#pairOf(name);
    const [signing, settings] = [join(this.#folder, `${name}.csr`), join(this.#folder, `${name}.ext`)];
    writeFileSync(settings, `${extensions}\n`);
    openssl("req", ...request(pair, name), "-out", signing);
    const ca = ["-CA", this.cert, "-CAkey", this.pair.key, "-CAcreateserial"];
    openssl("x509", "-req", "-in", signing, "-extfile", settings, "-days", "2", ...ca, "-out", pair.cert);
    return pair;
  }

  #pairOf(name: string): Pair {
    return { cert: join(this.#folder, `${name}.pem`), key: join(this.#folder, `${name}.key`) };
  }
}

/** The certificate of a file, in DER. */
export function der(file: string): string {
  return readFileSync(file, "utf8").replace(/-----[A-Z ]+-----|\s/g, "");
}

function request({ key }: Pair, name: string): string[] {
  const curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
  return [...curve, "-nodes", "-keyout", key, "-subj", `/CN=${name}`];
}

function openssl(...args: string[]): void {
  execFileSync("openssl", args, { stdio: "pipe" });
}
