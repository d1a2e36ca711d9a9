import { BlockList, isIP, isIPv6 } from "node:net";
import { Misconfigured } from "./errors.js";

/** The schemes of gRPC that are passed on. */
const plaintext = ["dns", "ipv4", "ipv6", "unix"];

/** gRPC's target, and whether it is reached over TLS. Throws Misconfigured for what is no address. */
export function parseAddress(address: string): [target: string, isTls: boolean] {
  const [, written = "", rest = ""] = /^([a-z][a-z0-9+.-]*):(.*)$/is.exec(address) ?? [];
  const scheme = written.toLowerCase();
  if (/^https?$/.test(scheme) && rest.startsWith("//")) {
    const host = rest.slice(2).replace(/\/+$/, "");
    if (!isHostAndPort(host)) throw noAddress(`${scheme}://HOST:PORT`);
    return [host, scheme === "https"];
  }
  if (plaintext.includes(scheme) && /[^/]/.test(rest)) return [`${scheme}:${rest}`, false];
  if (!isHostAndPort(address)) throw noAddress("HOST:PORT, https://HOST:PORT, unix:PATH or dns:///NAME:PORT");
  return [address, false];
}

/** Whether what is sent in plaintext stays on this host. */
export function isLocal(target: string): boolean {
  if (target.startsWith("unix:")) return true;
  return target
    .replace(/^(dns:\/\/\/|dns:|ipv4:|ipv6:)/, "")
    .split(",")
    .every((address) => isLoopback(hostOf(address)));
}

function isHostAndPort(text: string): boolean {
  const found = /^(?:\[([^\]]*)\]|[^\s:/@?#,[\]\\]+):([0-9]{1,5})$/.exec(text);
  if (!found) return false;
  const [, ip, port] = found;
  return Number(port) > 0 && Number(port) < 65_536 && (ip === undefined || isIPv6(ip));
}

function hostOf(address: string): string {
  const bracketed = /^\[([^\]]*)\]/.exec(address)?.[1];
  if (bracketed !== undefined) return bracketed;
  return address.split(":").length > 2 ? address : (address.split(":")[0] ?? "");
}

/** It also finds IPv4 addresses that are mapped to IPv6. */
const loopback = new BlockList();
loopback.addSubnet("127.0.0.0", 8, "ipv4");
loopback.addAddress("::1", "ipv6");

function isLoopback(host: string): boolean {
  const version = isIP(host);
  if (version === 0) return host.toLowerCase() === "localhost";
  return loopback.check(host.replace(/%.*/, ""), version === 4 ? "ipv4" : "ipv6");
}

function noAddress(form: string): Misconfigured {
  // The address is not shown: it may hold a password.
  return new Misconfigured("server", `the server must be ${form}`);
}
