"""A closed loop's user: the next request goes out when the reply to the last is over.

The event loop itself runs it: waking a greenlet for each reply would cost more than sending does.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from greenbench.contract.schema import RequestRecord
from loadgen.driver.retry import pause_after
from loadgen.driver.session import Session
from loadgen.wire.connection import Connection
from loadgen.wire.response import RawReply, Request


@dataclass(slots=True)
class Finished:
    """A request whose reply is over; ``record`` once it has been parsed and written."""

    request: Request
    reply: RawReply
    in_flight: int
    record: RequestRecord | None = None


class Later(Protocol):
    """An event loop that can run a callback later."""

    def later(self, callback: Callable[[], object]) -> None:
        """Call after the reads that are ready."""
        ...

    def at_leisure(self, callback: Callable[[], object]) -> None:
        """Call when there is nothing to do ``later``."""
        ...

    def after(self, seconds: float, callback: Callable[[], object]) -> None: ...


class Driver(Protocol):
    """What runs the users of one process."""

    @property
    def session(self) -> Session: ...

    @property
    def loop(self) -> Later: ...

    def settle(self, over: Finished) -> RequestRecord:
        """Parse and record a reply that is over, once."""
        ...


class ClosedLoop:
    """One user on one connection. A reply is parsed in spare time, at the latest when the next is over.

    After a failure replies are parsed at once, so that a user whose requests fail is paced, also where
    only the body says so.
    """

    def __init__(self, drive: Driver, connection: Connection) -> None:
        self._drive = drive
        self._session = drive.session
        self._connection = connection
        self._load = drive.session.live.point.load
        self._conversation = drive.session.conversation()
        self._in_flight = 0  # other open requests when the last was sent
        self._last: Finished | None = None
        self._in_line = (
            False  # for leisure, where a user stands once however many of its replies end
        )
        self._failing = False  # the last reply that was parsed was a failure
        self._stopped = False

    def send(self) -> None:
        """Send the next request; nothing when sending has ended."""
        if self._stopped:
            return
        request = self._session.next(time.monotonic_ns(), self._conversation)
        if request is not None:
            self._in_flight = self._session.depart()
            self._connection.start(request, self._session.timeout_s, self._over)

    def stop(self) -> None:
        """The user is stopped: what is open is cut, and what is over gets its row now."""
        self._stopped = True
        self._connection.abort("cut_at_drain", "the user was stopped")
        if self._last is not None:
            self._drive.settle(self._last)

    def _over(self, reply: RawReply) -> None:
        """Called from the read that ended the reply; other ready reads come before the next send."""
        self._session.arrived()
        before, self._last = self._last, Finished(reply.request, reply, self._in_flight)
        self._drive.loop.later(partial(self._go_on, before))

    def _go_on(self, before: Finished | None) -> None:
        hurried = before is not None and before.record is None
        if before is not None:
            self._failing = self._drive.settle(before).error_type is not None
        over = self._last
        if self._stopped or over is None:
            return
        if self._failing or over.reply.error is not None or over.reply.parser.status != 200:
            record = self._drive.settle(over)
            self._failing = record.error_type is not None
            pause_s = pause_after(record)
        else:
            self._set_aside()
            pause_s = self._load.turn_pause_s if self._conversation.turn else 0.0
        if pause_s:
            self._drive.loop.after(pause_s, self.send)
        elif (
            hurried
        ):  # then sends in a row wake the server once for many: 57 µs of CPU a request, not 65
            self._drive.loop.later(self.send)
        else:
            self.send()

    def _set_aside(self) -> None:
        """Settle the last reply when there is time.

        At saturation there is none: were every reply in line instead of its user, all of the run would stay
        in memory, and collecting garbage took 4 % of the CPU.
        """
        if not self._in_line:
            self._in_line = True
            self._drive.loop.at_leisure(self._settle_last)

    def _settle_last(self) -> None:
        self._in_line = False
        if self._last is not None:
            self._drive.settle(self._last)
