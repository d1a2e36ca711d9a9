"""Where the server is, and how a gate proves who it is: address, certificates, token.

Files are read again, so that what they hold can be exchanged while the process runs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import ssl
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from oncegate._address import is_local, parse
from oncegate._wire import DEFAULT_SERVER, Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

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

MAX_FILE = 1024 * 1024

_HIDDEN = re.compile(r"^.+-----BEGIN CERTIFICATE-----", re.MULTILINE)
"""A certificate that TLS does not find: its line begins with something else."""

LOOK_AGAIN = 10.0
"""Seconds between two looks at the certificates, while calls are made."""

LOOK_SOON = 1.0
"""The same after a connection has failed: the server may not accept the old ones any more."""


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
            content = _content(self.path).strip()
        except OSError as error:
            content, problem = b"", error.strerror or type(error).__name__
        if not content:
            raise _wrong(self.option, f"cannot use the file {self.path}: {problem}")
        return content


class Access:
    """The settings of a gate. They are read once, their files again and again.

    All methods raise a `Failure`, which is not repeated, if a setting or its file cannot be used.
    """

    def __init__(
        self,
        server: str | None,
        options: Mapping[str, object],
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._environment = environment
        address = _text({"server": server}, "server") or environment.get("ONCEGATE_SERVER")
        self.target, self.is_tls = parse(address or DEFAULT_SERVER)
        self.server_name = _text(options, "tls_server_name")
        if self.server_name is None:
            self.server_name = environment.get(ENVIRONMENT["tls_server_name"]) or None
        self._tls = self._tls_files(options)
        self._rotation = Rotation(self.certificates)
        self._token: Token | None = None
        self._token_outage = Outage("the token that was read before stays in use")
        self._token_file: _File | None = None
        self._read_token(options)
        has_token = self._token is not None or self._token_file is not None
        is_here = is_local(self.target)
        if has_token and not self.is_tls and not is_here and not options.get("insecure"):
            raise _wrong(
                "server",
                f"a token must not be sent in plaintext to {self.target}; "
                "use https://, or set insecure=True",
            )
        self.avoids_proxy = has_token and not self.is_tls and is_here
        """An HTTP proxy of the environment would carry the token to another host."""

    def _tls_files(
        self, options: Mapping[str, object]
    ) -> tuple[_File | None, _File | None, _File | None]:
        if not self.is_tls:
            for name in ("tls_ca", "tls_cert", "tls_key", "tls_server_name"):
                self._refuse_without_tls(options, name)
            return (None, None, None)
        ca, cert, key = (_file(options, name) for name in ("tls_ca", "tls_cert", "tls_key"))
        ca = ca or self._file("tls_ca")
        if cert is None and key is None:
            cert, key = self._file("tls_cert"), self._file("tls_key")
        if (cert is None) != (key is None):
            missing = "tls_cert" if cert is None else "tls_key"
            raise _wrong(missing, "a client certificate needs both tls_cert and tls_key")
        return ca, cert, key

    def _file(self, name: str) -> _File | None:
        """A file that the environment names."""
        path = self._environment.get(ENVIRONMENT[name])
        return _File(name, path) if path else None

    def _refuse_without_tls(self, options: Mapping[str, object], name: str) -> None:
        """A setting that has no effect is a mistake, also one of the environment of a whole pod."""
        if _text(options, name) is not None:
            setting = "the option"
        elif self._environment.get(ENVIRONMENT[name]):
            setting = ENVIRONMENT[name]
        else:
            return
        raise _wrong(
            name, f"{setting} needs TLS, and the server {self.target} has none; use https://HOST:PORT"
        )

    def _read_token(self, options: Mapping[str, object]) -> None:
        token = _text(options, "token")
        if token is None:
            self._token_file = _file(options, "token_file") or self._file("token_file")
        elif _text(options, "token_file") is not None:
            raise _wrong("token", "set either token or token_file")
        else:
            self._token = Token(token.strip(), "token")

    def token(self) -> Token | None:
        """The token for the next call. While its file cannot be used, the last one stays in use."""
        if self._token_file is None:
            return self._token
        try:
            self._token = Token(self._token_file.read().decode(errors="replace"), "token_file")
        except Failure as failure:
            if self._token is None:
                raise
            self._token_outage.warn(failure)
        else:
            self._token_outage.over()
        return self._token

    def credentials(self, now: float, *, at_once: bool = False) -> Credentials:
        """For the next call or stream. `at_once`: after a look at the files of the certificates."""
        token = self.token()
        certificates = self._rotation.certificates(now, at_once=at_once) if self.is_tls else None
        return Credentials(self, token, certificates)

    def connection_failed(self) -> None:
        """A call has failed, maybe because the server does not accept the certificates any more."""
        self._rotation.look_soon()

    def certificates(self, used: Certificates | None = None) -> Certificates:
        """What the files hold. If it is what is `used`, it was checked before."""
        ca, cert, key = (None if file is None else file.read() for file in self._tls)
        found = Certificates(ca, cert, key)
        if used is not None and found == used:
            return used
        self._check(found)  # which holds the event loop up for 0.1 s if all public CAs are there
        return found

    def _check(self, found: Certificates) -> None:
        """gRPC would report such files as an outage, without a word of what is wrong."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        ca, cert, key = self._tls
        if ca and found.ca:
            # Text around the certificates may be in any encoding.
            text = found.ca.decode("ascii", "replace").replace("\ufffd", "?")
            try:
                if _HIDDEN.search(text):
                    raise ValueError
                context.load_verify_locations(cadata=text)
            except (ssl.SSLError, ValueError):
                problem = f"{ca.path} holds no certificate in PEM, or a damaged one"
                raise _wrong("tls_ca", problem) from None
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


class Outage:
    """Warns of files that cannot be used: once for each, until they can be used again."""

    def __init__(self, consequence: str) -> None:
        self._consequence = consequence
        self._warned = set[str]()

    def warn(self, failure: Failure) -> None:
        """They cannot be used."""
        if failure.field not in self._warned:
            self._warned.add(failure.field)
            LOG.warning("%s; %s", failure.error(), self._consequence)

    def over(self) -> None:
        """They can be used."""
        self._warned.clear()


class Rotation:
    """The certificates that a gate uses, in all its event loops and threads."""

    def __init__(self, read: Callable[[Certificates | None], Certificates]) -> None:
        self._read = read
        self._used: Certificates | None = None
        self._looked = 0.0
        self._is_hurried = False
        self._outage = Outage("the certificates that were read before stay in use")

    def certificates(self, now: float, *, at_once: bool = False) -> Certificates:
        """For the next call. Files that cannot be used now leave the last ones in use."""
        pause = min(LOOK_SOON, LOOK_AGAIN) if self._is_hurried else LOOK_AGAIN
        used = self._used
        if used is not None and not at_once and now - self._looked < pause:
            return used
        self._looked, self._is_hurried = now, False
        try:
            found = self._read(used)
        except Failure as failure:
            if used is None:
                raise
            self._outage.warn(failure)
            return used
        self._outage.over()
        self._used = found
        return found

    def look_soon(self) -> None:
        """The next look comes earlier."""
        self._is_hurried = True


class Credentials:
    """What one call or stream proves itself by."""

    __slots__ = ("_access", "_token", "certificates")

    def __init__(self, access: Access, token: Token | None, certificates: Certificates | None) -> None:
        self._access = access
        self._token = token
        self.certificates = certificates

    def metadata(self) -> Metadata | None:
        """What is sent with the call."""
        return None if self._token is None else self._token.metadata()

    def judge(self, failure: Failure, now: float) -> Failure:
        """What its failure means. UNAUTHENTICATED is final only with the newest token and client
        certificate: with older ones the call is worth another try."""
        if failure.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED") and not failure.reason:
            self._access.connection_failed()
        if failure.code != "UNAUTHENTICATED":
            return failure
        newest = self._access.credentials(now, at_once=True)
        if newest._identity() == self._identity():
            return failure
        return Failure("UNAVAILABLE", "the token or client certificate was replaced", outdated=True)

    def _identity(self) -> tuple[Token | None, bytes | None, bytes | None]:
        found = self.certificates
        if found is None:
            return (self._token, None, None)
        return (self._token, found.cert, found.key)


def _content(path: str) -> bytes:
    """What a regular file holds. Raises OSError."""
    # A pipe without a writer would keep this waiting.
    extra = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | extra)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "it is not a regular file")
        content = file.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise OSError(0, "it is larger than 1 MiB")
    return content


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
    """A setting. An empty one is a mistake, such as a variable that is not set."""
    given = options.get(name)
    if given is None:
        return None
    text = (
        os.fspath(cast("str | os.PathLike[str]", given))
        if isinstance(given, os.PathLike)
        else str(given)
    )
    if not text:
        raise _wrong(name, "it is empty; set it, or leave it out")
    return text


def _file(options: Mapping[str, object], name: str) -> _File | None:
    path = _text(options, name)
    return None if path is None else _File(name, path)
