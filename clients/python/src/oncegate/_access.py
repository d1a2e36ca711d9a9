"""Where the server is, and how a gate proves who it is: address, certificates, token.

Files are read again, so that what they hold can be exchanged while the process runs.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from oncegate._wire import DEFAULT_SERVER, Failure

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

LOG = logging.getLogger("oncegate")

Metadata = tuple[tuple[str, str], ...]

ENVIRONMENT = {
    "tls_ca": "ONCEGATE_TLS_CA",
    "tls_cert": "ONCEGATE_CLIENT_CERT",
    "tls_key": "ONCEGATE_CLIENT_KEY",
    "tls_server_name": "ONCEGATE_TLS_SERVER_NAME",
    "token_file": "ONCEGATE_TOKEN_FILE",
}
"""As the command line has them: ``ONCEGATE_TLS_CERT`` is the server's own."""

MAX_TOKEN = 8 * 1024

LOOK_AGAIN = 10.0
"""Seconds between two looks at the certificates, while calls are made."""


class AccessOptions(TypedDict, total=False):
    """How a gate reaches its server. Files are PEM."""

    tls_ca: str | os.PathLike[str] | None
    """The CAs that the server's certificate may come from. Default: ``ONCEGATE_TLS_CA``, else gRPC's
    own list of public CAs."""
    tls_cert: str | os.PathLike[str] | None
    """The client's certificate, with its intermediates. Default: ``ONCEGATE_CLIENT_CERT``."""
    tls_key: str | os.PathLike[str] | None
    """Its private key, not encrypted. Default: ``ONCEGATE_CLIENT_KEY``."""
    tls_server_name: str | None
    """The name that the server's certificate must be valid for. Default: ``ONCEGATE_TLS_SERVER_NAME``,
    else that of the address."""
    token: str | None
    """A token, sent with each call."""
    token_file: str | os.PathLike[str] | None
    """A file with the token, read for each call. Default: ``ONCEGATE_TOKEN_FILE``."""
    insecure: bool
    """Whether a token may be sent in plaintext to another host."""


class Token:
    """What is sent with a call. Its text shows nothing."""

    __slots__ = ("_value",)

    def __init__(self, value: str, option: str) -> None:
        is_fit = 0 < len(value) <= MAX_TOKEN and value.isascii() and value.isprintable()
        if not is_fit or " " in value:
            raise _wrong(option, "this is not one token, of at most 8 KiB")
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Token) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def metadata(self) -> Metadata:
        """For one call."""
        return (("authorization", f"Bearer {self._value}"),)


@dataclass(frozen=True, repr=False)
class Certificates:
    """The contents of the files, for ``grpc.ssl_channel_credentials``."""

    ca: bytes | None
    cert: bytes | None
    key: bytes | None


class _File:
    """A file that an option names."""

    def __init__(self, option: str, path: str) -> None:
        self.option = option
        self.path = path

    def read(self) -> bytes:
        """What it holds, without white space around it. Never empty."""
        problem = "it is empty"
        try:
            content = Path(self.path).read_bytes().strip()
        except OSError as error:
            content, problem = b"", error.strerror or type(error).__name__
        if not content:
            raise _wrong(self.option, f"cannot use the file {self.path}: {problem}")
        return content


class Access:
    """The settings of a gate. They are read once, their files again and again.

    All methods raise a `Failure`, which is not repeated, if a setting or its file cannot be used.
    """

    def __init__(self, server: str | None, options: Mapping[str, object]) -> None:
        address = server or os.environ.get("ONCEGATE_SERVER") or DEFAULT_SERVER
        self.target, self.is_tls = _target(address)
        self.server_name = _text(options, "tls_server_name")
        if self.is_tls and self.server_name is None:
            self.server_name = os.environ.get(ENVIRONMENT["tls_server_name"]) or None
        self._tls = self._tls_files(options)
        self._token: Token | None = None
        self._token_is_old = False
        self._token_file: _File | None = None
        self._read_token(options)
        has_token = self._token is not None or self._token_file is not None
        is_local = _is_local(self.target)
        if has_token and not self.is_tls and not is_local and not options.get("insecure"):
            raise _wrong(
                "server",
                f"a token must not be sent in plaintext to {self.target}; "
                "use https://, or set insecure=True",
            )
        self.avoids_proxy = has_token and not self.is_tls and is_local
        """An HTTP proxy of the environment would carry the token to another host."""

    def _tls_files(
        self, options: Mapping[str, object]
    ) -> tuple[_File | None, _File | None, _File | None]:
        names = ("tls_ca", "tls_cert", "tls_key")
        if not self.is_tls:
            for name in (*names, "tls_server_name"):
                if options.get(name) is not None:
                    raise _wrong(name, f"the server {self.target} has no TLS; use https://")
            return (None, None, None)
        has_own_pair = options.get("tls_cert") is not None or options.get("tls_key") is not None
        ca = _file(options, "tls_ca")
        cert = _file(options, "tls_cert", environment=not has_own_pair)
        key = _file(options, "tls_key", environment=not has_own_pair)
        if (cert is None) != (key is None):
            missing = "tls_cert" if cert is None else "tls_key"
            raise _wrong(missing, "a client certificate needs both tls_cert and tls_key")
        return ca, cert, key

    def _read_token(self, options: Mapping[str, object]) -> None:
        token = _text(options, "token")
        if token is None:
            self._token_file = _file(options, "token_file")
        elif options.get("token_file") is not None:
            raise _wrong("token", "set either token or token_file")
        else:
            self._token = Token(token.strip(), "token")

    def token(self) -> Token | None:
        """The token for the next call. While its file cannot be used, the last one stays in use."""
        if self._token_file is None:
            return self._token
        try:
            self._token = Token(self._token_file.read().decode(errors="replace"), "token_file")
            self._token_is_old = False
        except Failure as failure:
            if self._token is None:
                raise
            if not self._token_is_old:
                self._token_is_old = True
                LOG.warning("%s; the token that was read before stays in use", failure.message)
        return self._token

    def has_replaced(self, token: Token | None) -> bool:
        """Whether the next call would have another token than that one."""
        return self._token_file is not None and self.token() != token

    def certificates(self) -> Certificates:
        """What the files hold."""
        ca, cert, key = (None if file is None else file.read() for file in self._tls)
        found = Certificates(ca, cert, key)
        self._check(found)
        return found

    def _check(self, found: Certificates) -> None:
        """gRPC would report such files as an outage, without a word of what is wrong."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        ca, cert, key = self._tls
        if ca and found.ca:
            try:
                # Text around the certificates may be in any encoding.
                context.load_verify_locations(cadata=found.ca.decode("ascii", "ignore"))
            except (ssl.SSLError, ValueError):
                raise _wrong("tls_ca", f"{ca.path} holds no certificate in PEM") from None
        if cert and key and found.cert and found.key:
            try:
                with _as_file(found.cert) as cert_path, _as_file(found.key) as key_path:
                    context.load_cert_chain(cert_path, key_path, password="")
            except (ssl.SSLError, ValueError) as error:
                reason = getattr(error, "reason", None) or "no PEM"
                files = f"{cert.path} and {key.path}"
                problem = f"{files} are not a certificate and its key: {reason}"
                raise _wrong("tls_cert", problem) from None
            except OSError as error:  # which SSLError is too
                problem = f"{cert.path} and {key.path} cannot be checked: {error.strerror}"
                raise _wrong("tls_cert", problem) from None


class Rotation:
    """The certificates that one event loop's channels are made with."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._used: Certificates | None = None
        self._looked = 0.0

    def certificates(self) -> Certificates:
        """For a new channel. Files that cannot be used now leave the last ones in use."""
        if self._used is None:
            self._used = self._access.certificates()
        return self._used

    def has_changed(self, now: float) -> bool:
        """Whether the files hold others: then a new channel is needed."""
        if self._used is None or now - self._looked < LOOK_AGAIN:
            return False
        self._looked = now
        try:
            found = self._access.certificates()
        except Failure as failure:
            LOG.warning("%s; the certificates that were read before stay in use", failure.message)
            return False
        if found == self._used:
            return False
        self._used = found
        return True


def metadata_of(token: Token | None) -> Metadata | None:
    """What is sent with a call."""
    return None if token is None else token.metadata()


@contextlib.contextmanager
def _as_file(content: bytes) -> Generator[str]:
    """A file with what was read: `ssl` takes a certificate and a key from files only.

    On Linux it is in memory, so that no key is written to a disk; but not where Python was built
    for a glibc before 2.27.
    """
    if sys.platform == "linux" and hasattr(os, "memfd_create"):
        with open(os.memfd_create("oncegate"), "wb", buffering=0) as file:
            file.write(content)
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:  # which no other user can read
            path = Path(folder, "pem")
            path.write_bytes(content)
            yield str(path)


def _wrong(option: str, problem: str) -> Failure:
    return Failure("MISCONFIGURED", problem, field=option)


def _text(options: Mapping[str, object], name: str) -> str | None:
    value = options.get(name)
    return None if value is None else str(value)


def _file(options: Mapping[str, object], name: str, *, environment: bool = True) -> _File | None:
    given = options.get(name)
    path = "" if given is None else os.fspath(cast("str | os.PathLike[str]", given))
    if not path and environment:
        path = os.environ.get(ENVIRONMENT[name], "")
    return _File(name, path) if path else None


def _target(address: str) -> tuple[str, bool]:
    """gRPC's target, and whether it is reached over TLS."""
    scheme, separator, rest = address.partition("://")
    if not separator or scheme not in ("http", "https"):
        return address, False
    host = rest.rstrip("/")
    if not host.rpartition(":")[2].isdecimal() or any(character in host for character in "/@?# "):
        # Not shown: it may hold a password.
        raise _wrong("server", f"the server must be {scheme}://HOST:PORT")
    return host, scheme == "https"


def _is_local(target: str) -> bool:
    """Whether what is sent in plaintext stays on this host."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    for scheme in ("dns:///", "dns:", "ipv4:", "ipv6:"):
        target = target.removeprefix(scheme)
    return all(_is_loopback(address) for address in target.split(","))


def _is_loopback(address: str) -> bool:
    if address.startswith("["):
        host = address[1:].partition("]")[0]
    else:
        host = address if address.count(":") > 1 else address.partition(":")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
