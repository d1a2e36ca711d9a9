import { execFileSync } from "node:child_process";
import { appendFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** The files of a certificate and its key. */
export interface Pair {
  readonly cert: string;
  readonly key: string;
}

export const forServer = "subjectAltName=DNS:localhost,IP:127.0.0.1";
export const forClient = "subjectAltName=URI:spiffe://test/bot\nextendedKeyUsage=clientAuth";

const settings = `
[ca]
default_ca = this
[this]
database = index
new_certs_dir = .
serial = serial
default_md = sha256
policy = names
unique_subject = no
[names]
commonName = supplied
`;

const days = 24 * 3600;

/** A CA of a test, made by the openssl command line in a folder of its own. */
export class Authority {
  readonly pair: Pair;
  readonly #folder: string;

  constructor(folder: string, name = "ca") {
    this.#folder = folder;
    this.pair = this.#pairOf(name);
    this.#run("req", "-x509", ...request(this.pair, name), "-days", "2", "-out", this.pair.cert);
  }

  get cert(): string {
    return this.pair.cert;
  }

  /** A certificate of this CA. */
  issue(name: string, extensions: string, seconds = 2 * days): Pair {
    const pair = this.#pairOf(name);
    const write = (file: string, text: string) => writeFileSync(join(this.#folder, file), text);
    write("settings", settings);
    write(`${name}.ext`, `${extensions}\n`);
    appendFileSync(join(this.#folder, "index"), "");
    this.#run("req", ...request(pair, name), "-out", `${name}.csr`);
    const ends = new Date(Date.now() + seconds * 1000).toISOString().replace(/[-:T]|\.\d+/g, "");
    const dates = ["-startdate", "20200101000000Z", "-enddate", ends];
    const own = ["-cert", this.cert, "-keyfile", this.pair.key, "-in", `${name}.csr`, "-out", pair.cert];
    const how = ["-batch", "-notext", "-rand_serial", "-config", "settings"];
    this.#run("ca", ...how, ...own, "-extfile", `${name}.ext`, ...dates);
    return pair;
  }

  #run(...args: string[]): void {
    execFileSync("openssl", args, { stdio: "pipe", cwd: this.#folder });
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
