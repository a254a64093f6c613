"""Sends an open loop's requests at their moments. The same on asyncio and in Locust's hub."""

import time
from collections.abc import Iterator
from typing import Final, Protocol

from greenbench.contract.config import PointConfig
from loadgen.driver.arrivals import Arrival, arrivals
from loadgen.driver.session import Session
from loadgen.driver.traces import read_trace
from loadgen.wire.response import Request

OPEN_AHEAD_S: Final = 0.25  # idle connections cover this many seconds of arrivals …
OPEN_AHEAD_MAX: Final = 64  # … but no more than this
LATE_NS: Final = 1_000_000_000  # later than this is not the schedule any more: `not_sent`


def schedule(point: PointConfig) -> Iterator[Arrival]:
    """The whole run's arrivals, before any sharding."""
    if point.load.trace is not None:
        return iter(read_trace(point.load, point.context_tokens))
    return arrivals(point.load, point.seed)


def open_ahead(point: PointConfig) -> int:
    """Idle connections to keep, so that a request need not wait for a handshake."""
    rate = max(point.load.rate_per_s or 8, point.load.ramp_to_per_s or 0)
    return min(OPEN_AHEAD_MAX, 2 + round(rate * OPEN_AHEAD_S))


class Sender(Protocol):
    """How a dispatcher sends: now, without waiting for the answer."""

    def send(self, request: Request) -> None: ...


class Dispatcher:
    """Sends what is due and sets the alarm for what is next. The same on asyncio and in Locust."""

    def __init__(self, session: Session, schedule: Iterator[Arrival], sender: Sender) -> None:
        self._session = session
        self._schedule = schedule
        self._sender = sender
        self._due_ns = 0
        self._over = True  # until the schedule begins

    @property
    def due_ns(self) -> int | None:
        """When the next request is due; None before the schedule begins, and when it has ended."""
        return None if self._over else self._due_ns

    def overdue(self) -> bool:
        return not self._over and self._due_ns <= time.monotonic_ns()

    def begin(self, start_ns: int) -> int:
        """Start the schedule at ``start_ns``; the moment of the first request."""
        self._start_ns = start_ns
        self._over = False
        self._session.phases.begin(start_ns)
        self._advance()
        return self._due_ns

    def send_due(self) -> int | None:
        """Send all that is due by now; the next moment, or None when the schedule has ended."""
        while not self._over and self._due_ns <= (now := time.monotonic_ns()):
            request = self._session.scheduled(self._arrival, self._due_ns)
            if request is None:
                self._over = True
            elif now - self._due_ns > LATE_NS:
                late_s = (now - self._due_ns) / 1e9
                self._session.not_sent(
                    request, f"the client was {late_s:.1f} s behind its schedule"
                )
            else:
                self._sender.send(request)
            self._advance()
        return self.due_ns

    def _advance(self) -> None:
        arrival = next(self._schedule, None)
        if arrival is not None:
            self._arrival = arrival
            self._due_ns = self._start_ns + round(arrival.offset_s * 1e9)
        elif not self._over:  # a trace has an end: measuring ends with it
            self._over = True
            self._session.phases.stop(time.monotonic_ns())
