"""One HTTP exchange with a limit on its whole time and on its size, past any proxy. Standard library only.

For pages and small questions: the models of a server, its /metrics. What drips, never ends or grows is
given up at the limit, with a reason that can be shown.
"""

import http.client
import io
import json
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from greenbench.contract.access import CA_ENV, Access

PIECE_BYTES: Final = 256 * 1024
WORDS_CHARS: Final = 200


class FetchError(OSError):
    """Why there is no answer, as a clause."""


@dataclass(frozen=True, slots=True)
class Limits:
    """``seconds`` for the whole exchange, from the first connecting to the last byte."""

    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON, or None where it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    @property
    def words(self) -> str:
        """What the server says, in one line: its error's own words where it gives them."""
        said: object = self.json()
        if said is None:
            said = self.body[: 4 * WORDS_CHARS].decode("utf-8", "replace")
        text = str(_error_of(said))
        return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))[:WORDS_CHARS]


def _error_of(said: object) -> object:
    for key in ("error", "message", "detail"):
        if isinstance(said, dict):
            said = cast("dict[str, object]", said).get(key) or cast(object, said)
    return said


def fetch(access: Access, path: str, limits: Limits, body: object = None) -> Reply:
    """GET, or POST with a ``body`` (sent as JSON). Raises FetchError where no answer comes whole."""
    deadline = time.monotonic() + limits.seconds
    data = None if body is None else json.dumps(body).encode()
    method = "GET" if data is None else "POST"
    try:
        with _connect(access, deadline) as connected:
            connected.settimeout(_left(deadline))
            connected.sendall(_head(access, method, path, data) + (data or b""))
            return _read(connected, method, deadline, path, limits.bytes)
    except TimeoutError as error:
        raise FetchError(f"no whole answer to {path} within {limits.seconds:g} s") from error
    except ssl.SSLCertVerificationError as error:
        raise FetchError(
            f"its certificate is not trusted ({error.verify_message}); name the file of its issuer's "
            f"certificate (ca_file, or {CA_ENV}), or set insecure: true"
        ) from error
    except ssl.SSLError as error:
        raise FetchError(f"TLS fails ({error.reason or error}); is it http://?") from error
    except FetchError:
        raise
    except OSError as error:
        raise FetchError(error.strerror or str(error) or type(error).__name__) from error
    except http.client.HTTPException as error:
        raise FetchError(
            f"it does not speak HTTP ({type(error).__name__}: {str(error)[:80]!r})"
        ) from error


def _head(access: Access, method: str, path: str, data: bytes | None) -> bytes:
    lines = [
        f"{method} {access.prefix}{path} HTTP/1.1",
        *(f"{name}: {value}" for name, value in access.head_lines()),
        "Accept: */*",
        "Accept-Encoding: identity",
        "Connection: close",
    ]
    if data is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _connect(access: Access, deadline: float) -> socket.socket:
    """To the first address of the name that answers."""
    last: OSError = FetchError("no such host")
    found = socket.getaddrinfo(access.host, access.port, type=socket.SOCK_STREAM)
    for number, (family, kind, protocol, _, address) in enumerate(found):
        connecting = socket.socket(family, kind, protocol)
        try:
            # an address that swallows all leaves time for the next
            connecting.settimeout(_left(deadline) / (len(found) - number))
            connecting.connect(address)
            connecting.settimeout(_left(deadline))
            if access.tls is None:
                return connecting
            return access.tls.wrap_socket(connecting, server_hostname=access.host)
        except OSError as error:
            connecting.close()
            last = error
            if isinstance(error, ssl.SSLError):
                raise
    raise last


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Drops(io.RawIOBase):
    """A socket's bytes until a deadline, however few come at a time."""

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._socket = connected
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._socket.settimeout(_left(self._deadline))
        return self._socket.recv_into(buffer)


class _Source:
    """What `http.client.HTTPResponse` wants of a socket."""

    def __init__(self, drops: _Drops) -> None:
        self._file = io.BufferedReader(drops, PIECE_BYTES)

    def makefile(self, _: str) -> io.BufferedIOBase:
        return self._file


def _read(connected: socket.socket, method: str, deadline: float, path: str, most: int) -> Reply:
    response = http.client.HTTPResponse(_Source(_Drops(connected, deadline)), method=method)  # type: ignore[arg-type]
    response.begin()
    body = bytearray()  # a list of pieces would be many times as large where each is a byte
    while piece := response.read1(PIECE_BYTES):
        body += piece
        if len(body) > most:
            raise FetchError(f"the answer to {path} is over {most // 2**20} MiB")
    if response.length:
        raise FetchError(f"the answer is cut: {response.length} bytes of it are missing")
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Reply(response.status, headers, bytes(body))
