"""The connections of one client process: opened ahead, reused, and cut when their time is over."""

import time
from collections.abc import Callable, Iterator

from loadgen.wire.connection import Connection, Loop, Target
from loadgen.wire.response import RawReply, Request


class Pool:
    """Connections to one server. ``start`` takes an idle one, or opens one."""

    def __init__(self, target: Target, loop: Loop, timeout_s: float) -> None:
        self._target = target
        self._loop = loop
        self._timeout_s = timeout_s
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()

    def connection(self) -> Connection:
        """A connection of the caller's own (a user's); the pool only watches its time limit."""
        connection = Connection(self._target, self._loop)
        self._all.add(connection)
        return connection

    def open_ahead(self, count: int) -> None:
        """Have at least ``count`` connections without a request, open or opening."""
        self._all = {c for c in self._all if c.alive or c.busy}
        self._idle = [c for c in self._idle if c.alive]
        while len(self._idle) < count:
            connection = self.connection()
            connection.open()
            if not connection.alive:
                self._all.discard(connection)
                return
            self._idle.insert(0, connection)

    def start(self, request: Request, done: Callable[[RawReply], object]) -> None:
        """Send on the most recently used idle connection; open one when there is none."""
        connection = self._take() or self.connection()

        def over(reply: RawReply) -> None:
            if connection.idle:
                self._idle.append(connection)
            else:
                self._all.discard(connection)
            done(reply)

        connection.start(request, self._timeout_s, over)

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.alive:
                return connection
            self._all.discard(connection)
        return None

    def open_replies(self) -> Iterator[RawReply]:
        """Of the requests under way."""
        return filter(None, (connection.busy for connection in self._all))

    def expire(self, now_ns: int | None = None) -> None:
        """End every request whose time limit has passed."""
        now = time.monotonic_ns() if now_ns is None else now_ns
        for connection in [c for c in self._all if c.busy and now > c.busy.deadline_ns]:
            reply = connection.busy
            assert reply is not None
            if reply.sent is not None and reply.send_ns is None:
                fault = ("stalled", f"the server did not take the request in {self._timeout_s:g} s")
            else:
                fault = ("timeout", f"no complete reply within {self._timeout_s:g} s")
            connection.abort(*fault)

    def cut(self, message: str) -> None:
        """End every open request as cut at the end of the drain."""
        for connection in [c for c in self._all if c.busy]:
            connection.abort("cut_at_drain", message)

    def close(self) -> None:
        self.cut("the client stopped")
        for connection in self._all:
            connection.close()
        self._all.clear()
        self._idle.clear()
