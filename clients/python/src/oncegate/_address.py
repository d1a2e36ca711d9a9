"""The address of the server: where it is, whether TLS reaches it, and whether it is on this host."""

from __future__ import annotations

import ipaddress
import re

from oncegate._wire import Failure

_PLAINTEXT = ("dns", "ipv4", "ipv6", "unix")
"""The schemes of gRPC that are passed on."""

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):(.*)", re.IGNORECASE | re.DOTALL)
_HOST_PORT = re.compile(r"(?:\[([^\]]*)\]|[^\s:/@?#,\[\]\\]+):([0-9]{1,5})")


def parse(address: str) -> tuple[str, bool]:
    """gRPC's target, and whether it is reached over TLS. Raises `Failure` for what is no address."""
    found = _SCHEME.fullmatch(address)
    scheme, rest = (found[1].lower(), found[2]) if found else ("", "")
    if scheme in ("http", "https") and rest.startswith("//"):
        host = rest[2:].rstrip("/")
        if not _is_host_and_port(host):
            raise _wrong(f"{scheme}://HOST:PORT")
        return host, scheme == "https"
    if scheme in _PLAINTEXT and rest.strip("/"):
        return f"{scheme}:{rest}", False
    if not _is_host_and_port(address):
        raise _wrong("HOST:PORT, https://HOST:PORT, unix:PATH or dns:///NAME:PORT")
    return address, False


def is_local(target: str) -> bool:
    """Whether what is sent in plaintext stays on this host."""
    if target.startswith("unix:"):
        return True
    addresses = re.sub("^(?:dns:///|dns:|ipv4:|ipv6:)", "", target).split(",")
    return all(_is_loopback(address) for address in addresses)


def _is_host_and_port(text: str) -> bool:
    found = _HOST_PORT.fullmatch(text)
    if found is None or not 0 < int(found[2]) < 65_536:
        return False
    return found[1] is None or isinstance(_ip(found[1]), ipaddress.IPv6Address)


def _is_loopback(address: str) -> bool:
    if address.startswith("["):
        host = address[1:].partition("]")[0]
    else:
        host = address if address.count(":") > 1 else address.partition(":")[0]
    ip = _ip(host)
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip  # which Python 3.13 does by itself
    return host.lower() == "localhost" if ip is None else ip.is_loopback


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _wrong(form: str) -> Failure:
    # The address is not shown: it may hold a password.
    return Failure("MISCONFIGURED", f"the server must be {form}", field="server")
