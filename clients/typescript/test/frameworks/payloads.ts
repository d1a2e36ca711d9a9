import { readFileSync } from "node:fs";

/** A payload of the server's own tests, by its description. */
export interface Payload {
  // biome-ignore lint/suspicious/noExplicitAny: a payload is what its platform sends
  readonly body: any;
  readonly headers: { readonly [name: string]: string };
}

export function payload(platform: string, what: string): Payload {
  const file = new URL(`../../../../tests/data/platforms/${platform}.json`, import.meta.url);
  const found = JSON.parse(readFileSync(file, "utf8")).find((one: { what?: string }) => one.what === what);
  if (!found) throw new Error(`no payload of ${platform} is "${what}"`);
  return { headers: {}, ...found };
}
