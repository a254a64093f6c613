"""The streaming client: one non-blocking socket a connection, read in the event loop's own callback.

Each read is one ``recvmsg`` that carries the kernel's arrival time (SO_TIMESTAMPNS), so the time of a
token does not depend on when Python got round to it. The callback appends and returns; parsing waits
until the reply is over (`loadgen.wire.response`). Works on any loop that can watch a descriptor: gevent's
hub under Locust, asyncio in the open-loop runner. TLS runs through a memory BIO over the same reads.
Plain HTTP/1.1, one request at a time on a connection; proxies and redirects are not followed.
"""

import _socket
import contextlib
import os
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from greenbench.contract.access import Access
from greenbench.contract.access import access as reached_by
from greenbench.contract.clock import Anchor
from greenbench.contract.errors import UserError
from loadgen.wire.response import RawReply, Request, Response, failed

SO_TIMESTAMPNS: Final = 35  # asm-generic/socket.h; Python's socket module does not name it
READ_BYTES: Final = 4 * 1024  # a token is 300 bytes; every read allocates this much first
READ_BYTES_MAX: Final = 1024 * 1024
ANCILLARY_BYTES: Final = 64
LOOK_S: Final = 1.0  # for an address of several to take a connection
SEND_BUFFER_BYTES: Final = 2 * 1024 * 1024  # a 128k-token prompt fits without waiting

monotonic_ns = time.monotonic_ns


class Watch(Protocol):
    """A descriptor under watch until ``stop``."""

    def stop(self) -> None: ...


class Loop(Protocol):
    """What the client needs of an event loop. Callbacks run in the loop and never block."""

    def watch_read(self, fd: int, callback: Callable[[], object]) -> Watch: ...

    def watch_write(self, fd: int, callback: Callable[[], object]) -> Watch: ...


@dataclass(frozen=True, slots=True)
class Target:
    """A server: its addresses, looked up once, and what goes into a request's head."""

    addresses: tuple["Address", ...]  # of its name, the one that answers first
    lines: str = field(
        repr=False
    )  # of every head: Host and headers of one's own, which may be secret
    path: str  # prefix of every path, without a slash at its end
    tls: ssl.SSLContext | None
    server_name: str

    @classmethod
    def of(cls, access: Access) -> "Target":
        """Look the name up. An unknown host, or a CA file that cannot be read, raises UserError."""
        return cls(
            addresses=_addresses(access),
            lines="".join(f"{name}: {value}\r\n" for name, value in access.head_lines()),
            path=access.prefix,
            tls=access.tls,
            server_name=access.host,
        )

    @classmethod
    def from_url(cls, base_url: str, tls: ssl.SSLContext | None = None) -> "Target":
        """Of ``http://host:port/prefix``; another scheme or an unknown host raises UserError."""
        target = cls.of(reached_by(base_url))
        return replace(target, tls=tls) if tls is not None else target

    def head(self, path: str, body_bytes: int, accept: str) -> bytes:
        """The head of a POST up to the request's id, which `whole_head` adds."""
        return (
            f"POST {self.path}{path} HTTP/1.1\r\n{self.lines}"
            f"Content-Type: application/json\r\nContent-Length: {body_bytes}\r\n"
            f"Accept: {accept}\r\nAccept-Encoding: identity\r\nX-Request-Id: "
        ).encode("latin-1")


@dataclass(frozen=True, slots=True)
class Address:
    """One address of a name, as the socket calls take it."""

    family: int
    place: tuple[str, int] | tuple[str, int, int, int]

    @property
    def answers(self) -> bool:
        """Whether something takes connections there now."""
        with socket.socket(self.family, socket.SOCK_STREAM) as trying:
            trying.settimeout(LOOK_S)
            return trying.connect_ex(self.place) == 0


def _addresses(access: Access) -> tuple[Address, ...]:
    """All of a name, those in front that answer: ``localhost`` is ::1 first, and servers listen elsewhere."""
    try:
        found = socket.getaddrinfo(access.host, access.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(f"base URL '{access.base_url}': no such host ({error})") from error
    addresses = tuple(dict.fromkeys(Address(int(row[0]), row[4]) for row in found))  # type: ignore[arg-type]
    if len(addresses) == 1:
        return addresses
    return tuple(sorted(addresses, key=lambda address: not address.answers))


def whole_head(head: bytes, request_id: str) -> bytes:
    return b"%b%b\r\n\r\n" % (head, request_id.encode("ascii"))


Done = Callable[[RawReply], object]


class Connection:
    """One connection, kept open from request to request and opened again when the server closed it.

    ``start`` never raises for what the network does: every outcome reaches ``done`` as a `RawReply`,
    from a callback of the loop or from within ``start`` itself. A request that met a connection which the
    server had just closed is sent once more on a new one, as long as no byte of a reply has come.
    """

    def __init__(self, target: Target, loop: Loop) -> None:
        self._target = target
        self._loop = loop
        self._socket: _socket.socket | None = None
        self._read_watch: Watch | None = None
        self._write_watch: Watch | None = None
        self._read_bytes = READ_BYTES
        self._ready = False  # connected, and TLS agreed
        self._connect_started_ns = 0
        self._at = 0  # place of the address in use …
        self._refused = 0  # … and how many have refused in a row
        self._may_be_stale = False  # it stood before the request in hand came
        self._tls: ssl.SSLObject | None = None
        self._goodbye = False
        self._incoming: ssl.MemoryBIO | None = None
        self._outgoing: ssl.MemoryBIO | None = None
        self._unsent = memoryview(b"")
        self._reply: RawReply | None = None
        self._done: Done | None = None
        self._connect_ns: int | None = None  # not yet charged to a request
        self._recvmsg: Callable[[int, int], tuple[bytes, list[tuple[int, int, bytes]], int, object]]

    @property
    def idle(self) -> bool:
        """Open, agreed, and without a request."""
        return self._ready and self._reply is None

    @property
    def alive(self) -> bool:
        """Open or opening."""
        return self._socket is not None

    @property
    def busy(self) -> RawReply | None:
        """The reply in the making, or None."""
        return self._reply

    def open(self) -> None:
        """Begin to connect, ahead of a request. A failure shows at the next ``start``."""
        if self._socket is None:
            try:
                self._connect()
            except OSError:
                self.close()

    def start(self, request: Request, timeout_s: float, done: Done) -> None:
        """Write the request now, or as soon as the connection stands."""
        assert self._reply is None, "one request at a time on a connection"
        now = monotonic_ns()
        reply = RawReply(request, now + round(timeout_s * 1e9))
        self._reply, self._done = reply, done
        self._may_be_stale = self._ready
        if self._ready:
            self._transmit(reply)
        elif self._socket is None:
            try:
                self._connect()
            except OSError as error:
                self._end(("connect", _words(error)))

    def abort(self, error_type: str, message: str) -> None:
        """Give up the request in hand (it ends with this error) and close the connection."""
        if self._reply is None:
            self.close()
        else:
            self._end((error_type, message))

    def close(self) -> None:
        for watch in (self._read_watch, self._write_watch):
            if watch is not None:
                watch.stop()
        self._read_watch = self._write_watch = None
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._ready = False
        self._tls = None
        self._goodbye = False
        self._unsent = memoryview(b"")
        self._connect_ns = None

    # --- connecting ---------------------------------------------------------------------------

    def _connect(self) -> None:
        """Begin with the address that was good last. Raises OSError when every one refuses at once."""
        self._connect_started_ns = monotonic_ns()
        self._refused = 0
        while True:
            try:
                self._connect_to(self._target.addresses[self._at])
            except OSError as error:
                if not self._take_next_address():
                    raise error
            else:
                return

    def _take_next_address(self) -> bool:
        """Give up the present one; False when all of the name have been tried."""
        addresses = self._target.addresses
        self._refused += 1
        self._at = (self._at + 1) % len(addresses)
        self.close()
        return self._refused < len(addresses)

    def _connect_to(self, address: Address) -> None:
        sock = _socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._socket = sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        with contextlib.suppress(
            OSError
        ):  # reads then carry no kernel time, and the record says so
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        try:
            sock.connect(address.place)
        except BlockingIOError:
            self._write_watch = self._loop.watch_write(sock.fileno(), self._on_connected)
            return
        self._on_connected()

    def _on_connected(self) -> None:
        sock = self._socket
        assert sock is not None
        self._stop_writing()
        fault = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if fault:
            self._refuse(OSError(fault, os.strerror(fault)))
            return
        self._recvmsg = sock.recvmsg
        self._read_watch = self._loop.watch_read(sock.fileno(), self._on_readable)
        if self._target.tls is None:
            self._connected()
        else:
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = self._target.tls.wrap_bio(
                self._incoming, self._outgoing, server_hostname=self._target.server_name
            )
            self._handshake()

    def _refuse(self, error: OSError) -> None:
        """The address does not take the connection: try the name's next one."""
        while self._take_next_address():
            try:
                self._connect_to(self._target.addresses[self._at])
            except OSError as another:
                error = another
            else:
                return
        self._broken(error)

    def _handshake(self) -> None:
        assert self._tls is not None and self._outgoing is not None
        try:
            self._tls.do_handshake()
            agreed = True
        except ssl.SSLWantReadError:
            agreed = False
        except ssl.SSLError as error:
            self._end(("connect", f"TLS: {error.reason or error}"))
            return
        self._write(self._outgoing.read())
        if agreed and self._socket is not None:
            self._connected()

    def _connected(self) -> None:
        self._connect_ns = monotonic_ns() - self._connect_started_ns
        self._ready = True
        if self._reply is not None:
            self._transmit(self._reply)

    # --- writing ------------------------------------------------------------------------------

    def _transmit(self, reply: RawReply) -> None:
        """Stamp the start and write. The connect time goes to the request that first uses it."""
        reply.connect_ns, self._connect_ns = self._connect_ns, None
        request = reply.request
        sock = self._socket
        assert sock is not None
        if self._tls is None:
            reply.sent = Anchor.now()
            try:
                sent = sock.sendmsg([request.head, request.body])
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._broken(error)
                return
            rest = len(request.head) + len(request.body) - sent
            if rest:
                self._hold((request.head + request.body)[-rest:])
            else:
                reply.send_ns = monotonic_ns() - reply.sent.mono_ns
        else:
            assert self._outgoing is not None
            self._tls.write(request.head + request.body)
            encrypted = self._outgoing.read()
            reply.sent = Anchor.now()
            self._write(encrypted)

    def _write(self, data: bytes) -> None:
        """Write what the kernel takes; the rest goes out when it has room again."""
        if self._unsent:
            data = bytes(self._unsent) + data
        assert self._socket is not None
        try:
            sent = self._socket.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._broken(error)
            return
        if sent < len(data):
            self._hold(data[sent:])
        else:
            self._unsent = memoryview(b"")
            self._all_sent()

    def _hold(self, rest: bytes) -> None:
        self._unsent = memoryview(rest)
        if self._reply is not None:
            self._reply.send_waits += 1
        if self._write_watch is None:
            assert self._socket is not None
            self._write_watch = self._loop.watch_write(self._socket.fileno(), self._on_writable)

    def _on_writable(self) -> None:
        assert self._socket is not None
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return
        except OSError as error:
            # the server may have answered (413, 400) and closed: read that before giving up
            sock = self._socket
            self._stop_writing()
            self._on_readable()
            if self._reply is not None and self._socket is sock:
                self._broken(error)
            return
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._stop_writing()
            self._all_sent()

    def _all_sent(self) -> None:
        reply = self._reply
        if reply is not None and reply.sent is not None and reply.send_ns is None:
            reply.send_ns = monotonic_ns() - reply.sent.mono_ns

    def _stop_writing(self) -> None:
        if self._write_watch is not None:
            self._write_watch.stop()
            self._write_watch = None

    # --- reading ------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        try:
            data, ancillary, _, _ = self._recvmsg(self._read_bytes, ANCILLARY_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._broken(error)
            return
        now = monotonic_ns()
        if len(data) == self._read_bytes:
            self._read_bytes = min(4 * self._read_bytes, READ_BYTES_MAX)
        if self._tls is not None and data:
            data = self._decrypt(data)
            if data is None:
                return
        reply = self._reply
        if not data:
            self._closed_by_peer()
        elif reply is None or reply.sent is None:
            self.close()  # bytes that nobody asked for
        elif reply.add(data, now, ancillary[0][2] if ancillary else None):
            self._end(reply.error)
        elif self._goodbye:  # TLS: the last bytes and the goodbye came in one read
            self._closed_by_peer()

    def _decrypt(self, data: bytes) -> bytes | None:
        """The plain bytes of a read; None while it holds none; b"" when the peer said goodbye."""
        assert self._tls is not None and self._incoming is not None and self._outgoing is not None
        self._incoming.write(data)
        if not self._ready:
            self._handshake()
            if not self._ready or not self._incoming.pending:
                return None
        plain: list[bytes] = []
        goodbye = False
        try:
            while True:
                piece = self._tls.read(READ_BYTES)
                if not piece:
                    goodbye = True
                    break
                plain.append(piece)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            goodbye = True
        except ssl.SSLError as error:
            self._broken(OSError(0, f"TLS: {error.reason or error}"))
            return None
        if self._outgoing.pending:
            self._write(self._outgoing.read())
        self._goodbye = goodbye
        if goodbye and not plain:
            return b""
        return b"".join(plain) or None

    def _closed_by_peer(self) -> None:
        reply = self._reply
        if reply is None or not self._ready:
            self._broken(OSError(0, "the server closed the connection"))
        elif not self._sends_again(reply):
            reply.closed_by_peer()
            self._end(reply.error)

    def _broken(self, error: OSError) -> None:
        """A socket error: of the connecting, of the reply in hand, or of an idle connection."""
        reply = self._reply
        if reply is None:
            self.close()
        elif not self._ready:
            self._end(("connect", _words(error)))
        elif not self._sends_again(reply):
            reply.closed_by_peer(_words(error))
            self._end(reply.error)

    def _sends_again(self, reply: RawReply) -> bool:
        """Open anew and send once more, if the server closed a standing connection and answered nothing."""
        if not self._may_be_stale or reply.parser.started:
            return False
        self._may_be_stale = False
        self.close()
        reply.send_again()
        try:
            self._connect()
        except OSError as error:
            self._end(("connect", _words(error)))
        return True

    def _end(self, fault: tuple[str, str] | None) -> None:
        """The request is over: keep or close the connection, then hand the reply over."""
        reply, done = self._reply, self._done
        self._reply = self._done = None
        if fault is not None and reply is not None:
            reply.error = fault
        if (
            fault is not None
            or reply is None
            or not reply.parser.reusable
            or self._goodbye
            or self._unsent
        ):
            self.close()
        self._read_bytes = READ_BYTES
        if reply is not None and done is not None:
            reply.ended_mono_ns = monotonic_ns()
            done(reply)


def outcome(reply: RawReply) -> Response:
    """Parse a finished reply. May take a while for a long stream: call it after the next send."""
    if reply.sent is None:
        error_type, message = reply.error or ("connect", "never sent")
        return failed(error_type, message, reply.connect_ns)
    return reply.result(Anchor.now())


def _words(error: OSError) -> str:
    return error.strerror or type(error).__name__
