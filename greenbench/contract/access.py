"""How a running server is reached: its address, the headers it wants, and whose certificates are trusted.

One `Access` serves the sweep, the load generators, the probe and the scrape. Only names of environment
variables are ever stored; their values stand in an `Access`, in memory. Standard library only.
"""

import functools
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

from greenbench.contract.address import address_fault
from greenbench.contract.errors import UserError

CA_ENV: Final = "SSL_CERT_FILE"
ENDINGS: Final = ("/chat/completions", "/completions", "/models")  # of a pasted address, behind /v1
VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
OWN_HEADERS: Final = frozenset(
    ("accept", "accept-encoding", "connection", "content-length", "content-type", "transfer-encoding",
     "x-request-id")
)  # fmt: skip
SECRET: Final = re.compile(r"auth|cookie|key|token|secret|passw|credential|session", re.IGNORECASE)
SECRET_VALUE: Final = re.compile(r"(bearer|basic|digest|token)\s", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Access:
    """``base_url``: without ``/v1`` and without a slash at its end. ``headers`` go into every request."""

    base_url: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    ca_file: str | None = None
    insecure: bool = False

    @property
    def host(self) -> str:
        """As a resolver wants it: an IPv6 address without brackets, with its zone if it has one."""
        return (urlsplit(self.base_url).hostname or "").replace("%25", "%")

    @property
    def port(self) -> int:
        parts = urlsplit(self.base_url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def prefix(self) -> str:
        """Of every path."""
        return urlsplit(self.base_url).path.rstrip("/")

    @property
    def tls(self) -> ssl.SSLContext | None:
        """None for http. A CA file that cannot be read raises UserError."""
        if not self.base_url.lower().startswith("https:"):
            return None
        return trust(self.ca_file, self.insecure, os.environ.get(CA_ENV))

    def head_lines(self) -> list[tuple[str, str]]:
        """``Host`` and the headers of one's own; a ``Host`` among these is the one that is sent."""
        if any(name.lower() == "host" for name, _ in self.headers):
            return list(self.headers)
        netloc = urlsplit(self.base_url).netloc
        host = re.sub(r"%25[^]]*", "", netloc)  # a zone means something on this machine only
        return [
            ("Host", host.encode("idna").decode() if not host.isascii() else host),
            *self.headers,
        ]


def access(
    base_url: str, keys: Mapping[str, Any] | None = None, env: Mapping[str, str] = os.environ
) -> Access:
    """The access that an address and the connection keys of a ``server:`` block give.

    A malformed address, or an environment variable that is not set, raises UserError.
    """
    if fault := address_fault(base_url):
        raise UserError(f"base URL {fault}")
    if not _can_be_sent(base_url):
        raise UserError(
            f"base URL '{base_url}' holds characters that a request cannot carry; write its path in "
            "percent-encoding, and its name as DNS has it"
        )
    keys = keys or {}
    headers = [(name, str(value)) for name, value in _mapping(keys.get("headers")).items()]
    for name, variable in _mapping(keys.get("headers_env")).items():
        headers.append((name, _value(str(variable), f"header {name}", env)))
    if variable := keys.get("api_key_env"):
        headers.append(("Authorization", f"Bearer {_value(str(variable), 'api_key_env', env)}"))
    ca_file = keys.get("ca_file")
    return Access(
        base_url=root_of(base_url),
        headers=tuple(headers),
        ca_file=str(Path(ca_file).expanduser()) if ca_file else None,
        insecure=bool(keys.get("insecure")),
    )


def root_of(base_url: str) -> str:
    """The address without what clients add to it: ``http://h/p/v1/`` and ``…/v1/models`` are ``http://h/p``."""
    root = base_url.rstrip("/")
    for ending in ENDINGS:
        if root.endswith("/v1" + ending):
            root = root.removesuffix(ending)
    return root.removesuffix("/v1").rstrip("/")


def header_fault(name: str, value: str | None) -> str | None:
    """What is wrong with a header that a person gives; the value is never shown. None: nothing."""
    if not HEADER.fullmatch(name):
        return f"'{name}' is no name of a header"
    if name.lower() in OWN_HEADERS:
        return f"'{name}' is set by the client itself; take it out"
    if value is None:
        return None
    if _odd_value(value):
        return f"the value of '{name}' holds characters that a header cannot have"
    if SECRET.search(name) or SECRET_VALUE.match(value):
        return (
            f"the value of '{name}' would be stored in each run; put it into an environment variable and "
            f"give that one's name: headers_env: {{{name}: MY_VARIABLE}}"
        )
    return None


def variable_fault(name: str) -> str | None:
    """What is wrong with a name of an environment variable; it is not shown, for it may be the key itself."""
    if VARIABLE.fullmatch(name):
        return None
    return "the name of an environment variable is wanted, e.g. OPENAI_API_KEY, not the key itself"


@functools.cache
def trust(ca_file: str | None, insecure: bool, from_env: str | None) -> ssl.SSLContext:
    """Whose certificates count: the file's, else SSL_CERT_FILE's, else the system's; or anyone's.

    Loading takes 20 ms and more, so it is done once.
    """
    given = ca_file or from_env
    if given and not insecure and not os.access(given, os.R_OK):
        what = "ca_file" if ca_file else CA_ENV
        raise UserError(f"{what}: {given} cannot be read; give a file of certificates (PEM)")
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (ssl.SSLError, OSError) as error:
        raise UserError(f"ca_file: {ca_file} holds no certificates (PEM) ({error})") from error
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _value(variable: str, what: str, env: Mapping[str, str]) -> str:
    if fault := variable_fault(variable):
        raise UserError(f"{what}: {fault}")
    value = env.get(variable, "").strip()
    shown = variable if variable.isupper() else "that is named"  # it may be the key itself
    if not value:
        raise UserError(
            f"{what}: the environment variable {shown} is not set, or is empty; export it"
        )
    if _odd_value(value):
        raise UserError(
            f"{what}: the value of the environment variable {shown} holds characters that a header "
            "cannot have"
        )
    return value


def _can_be_sent(base_url: str) -> bool:
    parts = urlsplit(base_url)
    try:
        (parts.hostname or "").encode("idna")
    except UnicodeError:
        return False
    return parts.path.isascii()


def _odd_value(value: str) -> bool:
    return not value.isprintable() or not all(ord(c) < 256 for c in value)


def _mapping(value: object) -> dict[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}
